"""Codecs: how the values of a sparse tensor become a few dense arrays, and back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from robustcompress import families
from robustcompress.errors import StorageError
from robustcompress.member import Member, class_attribute

if TYPE_CHECKING:
    from robustcompress.storage.codecs.bitmask import Bitmask as Bitmask
    from robustcompress.storage.codecs.dense import Dense as Dense
    from robustcompress.storage.codecs.gaps import Gaps as Gaps
    from robustcompress.storage.codecs.rice import Rice as Rice

Values: TypeAlias = npt.NDArray[np.generic]
"""A flat array of any dtype."""

PART_COST_BYTES = 80
"""What one more array costs in a file's header, about."""


class Codec(Member, ABC):
    """One way to write a flat array that is mostly zero."""

    family: ClassVar[str] = "robustcompress.storage.codecs"

    @abstractmethod
    def encode(self, values: Values) -> dict[str, Values]:
        """Return the named parts that hold ``values`` (1-D, C order), each a 1-D array."""

    @abstractmethod
    def decode(self, parts: Mapping[str, Values], size: int, dtype: np.dtype[Any]) -> Values:
        """Return the array of ``size`` values that ``parts`` hold.

        It is exact, but that +0.0 and -0.0 both come back as +0.0.
        Allocates no more than ``size`` values and a small multiple of what ``parts`` already hold.

        Raises:
            StorageError: If parts are missing, of the wrong dtype or length, or point outside the array.
        """


@cache  # listing asks every installed package, which takes longer than writing a small file
def all_codecs() -> tuple[Codec, ...]:
    """Return one codec of each kind, installed ones included, sorted by kind."""
    return tuple(Codec.find(kind) for kind in families.kinds(Codec.family))


def smallest(values: Values, codecs: Sequence[Codec] | None = None) -> tuple[Codec, dict[str, Values]]:
    """Return the codec that takes the fewest bytes for ``values`` (1-D), and its parts.

    Each part counts ``PART_COST_BYTES`` on top of its data, so that small tensors stay in one piece.

    Args:
        values: What is to be written.
        codecs: Those to choose from; by default all. Of equals, the one with fewer parts wins, then the
            earlier one.
    """
    encoded = [(codec, codec.encode(values)) for codec in codecs or all_codecs()]

    def cost(candidate: tuple[Codec, dict[str, Values]]) -> tuple[int, int]:
        parts = candidate[1]
        return sum(part.nbytes + PART_COST_BYTES for part in parts.values()), len(parts)

    return min(encoded, key=cost)


def expect_parts(parts: Mapping[str, Values], names: Sequence[str]) -> None:
    """Check that ``parts`` has exactly ``names``, each 1-D.

    Raises:
        StorageError: If a part is missing, unknown or not 1-D.
    """
    if set(parts) != set(names):
        raise StorageError(f"expected the parts {sorted(names)}; got {sorted(parts)}.")
    for name in names:
        if parts[name].ndim != 1:
            raise StorageError(f"part {name!r}: expected one dimension; got {parts[name].ndim}.")


def __getattr__(name: str) -> Any:
    return class_attribute(Codec, name)
