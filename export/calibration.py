"""Hands calibration images to ONNX Runtime's quantiser."""

from typing import Any

from onnxruntime.quantization import CalibrationDataReader
from torch import Tensor

_BATCH = 32


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
    """Hands images to the quantiser, in batches.

    Args:
        name: Of the model's input.
        images: float32 ``[n, ...]`` on the CPU.
    """

    def __init__(self, name: str, images: Tensor) -> None:
        self._feeds = iter([{name: batch.numpy()} for batch in images.split(_BATCH)])

    def get_next(self) -> Any:
        """Return the next batch by the input's name, or ``None`` when all were seen."""
        return next(self._feeds, None)
