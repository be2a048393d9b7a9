import pytest
from pydantic import TypeAdapter, ValidationError

from robustcompress.fractions import Number, as_number

NUMBER: TypeAdapter[float] = TypeAdapter(Number)


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.1", 0.1), (0.5, 0.5), (" 1 / 4 ", 0.25), (2, 2.0)]
)
def test_fractions_and_decimals_are_numbers(text: object, value: float) -> None:
    assert NUMBER.validate_python(text) == value


@pytest.mark.parametrize("text", ["8/0", "a/b", "1/2/3"])
def test_a_broken_fraction_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match=r"expected a number such as 0\.1 or 8/255"):
        NUMBER.validate_python(text)


def test_text_without_a_slash_is_left_alone() -> None:
    assert as_number("pgd") == "pgd"
