"""Constants as C source."""

from typing import Any

import numpy as np
import numpy.typing as npt

from robustcompress.export.c.network import Floats

_PER_LINE = 16


def number(value: float) -> str:
    """Return a float32 as a C constant that reads back as the same bits."""
    text = f"{value:.9g}"
    if text in ("inf", "-inf"):
        return text.replace("inf", "FLT_MAX")
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def floats(name: str, values: Floats) -> str:
    """Return a table of float32."""
    return _table("float", name, [_short(f"{value:.9g}") for value in values.reshape(-1).tolist()])


def integers(kind: str, name: str, values: npt.NDArray[Any]) -> str:
    """Return a table of whole numbers of a C type."""
    return _table(kind, name, [str(value) for value in values.reshape(-1).tolist()])


def _short(text: str) -> str:
    """Return a decimal number as a C constant of type float."""
    if text == "0":
        return "0"
    return f"{text}f" if "." in text or "e" in text else f"{text}.f"


def _table(kind: str, name: str, items: list[str]) -> str:
    lines = [",".join(items[start : start + _PER_LINE]) for start in range(0, len(items), _PER_LINE)] or ["0"]
    return f"static const {kind} {name}[{max(len(items), 1)}] = {{\n" + ",\n".join(lines) + "};\n"


def half_codes(values: Floats) -> npt.NDArray[np.uint16]:
    """Return float32 values, which float16 holds, as its bits."""
    return values.astype(np.float16).view(np.uint16)
