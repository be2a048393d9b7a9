"""What the oldest runtime that is to load a file understands: ONNX operators and file version."""

import re
from dataclasses import dataclass

from robustcompress.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """The newest that a runtime reads; all older ones it reads too.

    Attributes:
        opset: Version of ONNX's operators.
        ir_version: Version of ONNX's file format.
    """

    opset: int
    ir_version: int


_LIMITS = {
    (1, 14): Limits(18, 8),
    (1, 15): Limits(19, 9),
    (1, 16): Limits(19, 9),
    (1, 17): Limits(20, 9),
    (1, 18): Limits(21, 10),
    (1, 19): Limits(21, 10),
    (1, 20): Limits(21, 10),
    (1, 21): Limits(22, 10),
    (1, 22): Limits(22, 10),
    (1, 23): Limits(23, 11),
}
"""By release of ONNX Runtime; the last row stands for all that are newer.

Source:
    https://onnxruntime.ai/docs/reference/compatibility.html for the release of ONNX that each builds on, and
    https://onnx.ai/onnx/repo-docs/Versioning.html for what that brings. The rows from 1.15 on were measured
    with the runtimes themselves: the newest opset and IR version that each loads.
"""
_OLDEST = min(_LIMITS)
_PATTERN = re.compile(r"\s*onnxruntime\s*>=\s*(\d{1,4})\.(\d{1,4})(?:\.\d{1,4})?\s*")


def limits_of(target: str) -> Limits:
    """Return what the oldest runtime that ``target`` admits understands.

    Args:
        target: ``onnxruntime>=1.17``.

    Raises:
        ConfigError: If it is written otherwise, or admits a runtime older than any that can read files of
            this library.
    """
    found = _PATTERN.fullmatch(target)
    if found is None:
        raise ConfigError(f"expected a target such as 'onnxruntime>=1.17'; got {target!r}.")
    release = int(found[1]), int(found[2])
    if release < _OLDEST:
        raise ConfigError(
            f"target {target!r}: ONNX Runtime {release[0]}.{release[1]} does not know opset 18, the oldest "
            f"that torch's exporter writes. Name {_OLDEST[0]}.{_OLDEST[1]} or newer."
        )
    return _LIMITS[max(known for known in _LIMITS if known <= release)]
