"""One bit per position, and the nonzero values."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from robustcompress.errors import StorageError
from robustcompress.storage.codecs import Codec, Values, expect_parts
from robustcompress.storage.kept import kept_values, nonzero, scattered, value_parts


class Bitmask(Codec):
    """Smallest where a third or so of the values are zero.

    Part ``mask`` (uint8): bit ``i % 8`` of byte ``i // 8``, counted from the lowest, is set where value
    ``i`` is nonzero; the bits behind the last value are clear. Part ``values``: the nonzero values in
    order, absent for booleans. Takes ``ceil(n / 8)`` bytes and the nonzero values.
    """

    def encode(self, values: Values) -> dict[str, Values]:
        mask = nonzero(values)
        return {"mask": np.packbits(mask, bitorder="little"), **kept_values(values, mask)}

    def decode(self, parts: Mapping[str, Values], size: int, dtype: np.dtype[Any]) -> Values:
        expect_parts(parts, ["mask", *value_parts(dtype)])
        packed = parts["mask"]
        if packed.dtype != np.uint8 or len(packed) != (size + 7) // 8:
            raise StorageError(
                f"part 'mask': expected {(size + 7) // 8} bytes; got {len(packed)} of {packed.dtype}."
            )
        packed_bytes = packed.astype(np.uint8, copy=False)
        if size % 8 and int(packed_bytes[-1]) >> (size % 8):
            raise StorageError(f"part 'mask': a bit behind the last of {size} values is set.")
        mask = np.unpackbits(packed_bytes, count=size, bitorder="little").view(np.bool_)
        return scattered(parts, mask, int(mask.sum()), size, dtype)
