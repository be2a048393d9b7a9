"""Numbers that people write as fractions: ``8/255``."""

from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator


def as_number(value: object) -> object:
    """Return the float that ``"8/255"`` means; leave what is no fraction to pydantic.

    Raises:
        ValueError: If the text has a slash and is not a fraction of two numbers.
    """
    if not isinstance(value, str) or "/" not in value:
        return value
    try:
        return float(Fraction(value.replace(" ", "")))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"expected a number such as 0.1 or 8/255; got {value!r}") from error


Number = Annotated[float, BeforeValidator(as_number)]
"""A float that may be written as a fraction."""
