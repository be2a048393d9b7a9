"""All values, one after the other."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from robustcompress.errors import StorageError
from robustcompress.storage.codecs import Codec, Values, expect_parts
from robustcompress.storage.kept import nonzero


class Dense(Codec):
    """Part ``values`` is the array itself, with +0.0 for -0.0."""

    def encode(self, values: Values) -> dict[str, Values]:
        plain = values.copy()
        if plain.dtype.kind == "f":
            plain[~nonzero(values)] = 0
        return {"values": plain}

    def decode(self, parts: Mapping[str, Values], size: int, dtype: np.dtype[Any]) -> Values:
        expect_parts(parts, ["values"])
        values = parts["values"]
        if values.dtype != dtype or len(values) != size:
            raise StorageError(
                f"part 'values': expected {size} values of {dtype}; got {len(values)} of {values.dtype}."
            )
        return values.copy()
