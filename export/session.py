"""Run an ONNX file: images in, logits out."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from robustcompress.errors import ConfigError, DataError, ExportError
from robustcompress.export.expansion import check_expansion
from robustcompress.export.onnx_file import read_model
from robustcompress.export.soundness import LARGEST_FILE
from robustcompress.storage.atomic import read_bytes

_MOST_PIXELS = 2**28
"""Numbers of one batch that a file may ask for: 1 GiB in float32."""
_QUIET = 4  # fatal errors only; whatever is wrong is raised, too


class OnnxSession:
    """A predictor that computes with ONNX Runtime on the CPU.

    Attributes:
        name: Of the file, for reports and errors.
        input_shape: Of the images, ``None`` where any size will do, as in ``(None, 3, 32, 32)``.
        metadata: What the file says of itself.
    """

    name: str
    input_shape: tuple[int | None, ...]
    metadata: Mapping[str, str]

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes,
        *,
        threads: int = 0,
        batch_size: int = 256,
        name: str | None = None,
    ) -> None:
        """Load a file.

        Args:
            source: The file, or its bytes.
            threads: On which one operator may run; 0 leaves it to the runtime.
            batch_size: Images computed at once; more are cut into batches.
            name: In place of the file's own.

        Raises:
            ConfigError: If ``threads`` or ``batch_size`` is out of range.
            StorageError: If the file is missing or cannot be read.
            ExportError: If it is no sound ONNX model, keeps constants in other files, would take more memory
                than :data:`~robustcompress.export.expansion.LARGEST_DECODED`, ONNX Runtime cannot load it,
                or it does not map float32 images to logits ``[batch, classes]``.
        """
        if threads < 0 or batch_size < 1:
            raise ConfigError(
                f"threads must be 0 or more and batch_size 1 or more; got {threads} and {batch_size}."
            )
        self.name = name or ("(bytes)" if isinstance(source, bytes) else Path(source).name)
        self._batch_size = batch_size
        self._session = _load(source, self.name, threads)
        self._input, self._output = self._checked_ends()
        shape = self._session.get_inputs()[0].shape
        self.input_shape = tuple(size if isinstance(size, int) else None for size in shape)
        self.metadata = MappingProxyType(dict(self._session.get_modelmeta().custom_metadata_map))

    def __repr__(self) -> str:
        return f"OnnxSession({self.name!r})"

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return float32 logits ``[batch, classes]`` on the images' device; they carry no gradient.

        Args:
            images: Floating point ``[batch, ...]`` of the file's input shape.

        Raises:
            DataError: If the images have another shape.
            ExportError: If the runtime fails on them.
        """
        batch, *sizes = self.input_shape
        fits = images.ndim == len(self.input_shape) and len(images) > 0 and len(images) % (batch or 1) == 0
        if not fits or any(
            size not in (None, got) for size, got in zip(sizes, images.shape[1:], strict=True)
        ):
            expected = ", ".join("any" if size is None else str(size) for size in self.input_shape)
            raise DataError(f"{self.name} takes images [{expected}]; got {list(images.shape)}.")
        pixels = images.detach().to("cpu", torch.float32).contiguous()
        size = batch or self._batch_size
        if len(pixels) <= size:
            return self._run(pixels).to(images.device)
        return torch.cat([self._run(part) for part in pixels.split(size)]).to(images.device)

    def _run(self, pixels: Tensor) -> Tensor:
        try:
            (logits,) = self._session.run([self._output], {self._input: pixels.numpy()})
        except Exception as error:  # onnxruntime's exceptions have no common root
            raise ExportError(f"{self.name}: ONNX Runtime failed: {_first_line(error)}") from error
        found = torch.from_numpy(np.asarray(logits, dtype=np.float32))
        if found.ndim != 2 or len(found) != len(pixels):
            raise ExportError(
                f"{self.name}: expected logits [{len(pixels)}, classes]; got {list(found.shape)}."
            )
        return found

    def _checked_ends(self) -> tuple[str, str]:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ExportError(
                f"{self.name}: expected one input (images) and one output (logits); the file has inputs "
                f"{[item.name for item in inputs]} and outputs {[item.name for item in outputs]}."
            )
        if inputs[0].type != "tensor(float)":
            raise ExportError(f"{self.name}: expected float32 images; the file takes {inputs[0].type}.")
        sizes = [size for size in inputs[0].shape if isinstance(size, int)]
        if math.prod(sizes) > _MOST_PIXELS:
            raise ExportError(
                f"{self.name}: it takes images {sizes}, more than {_MOST_PIXELS:,} numbers at once. The file "
                "is damaged, or made to fill memory."
            )
        return inputs[0].name, outputs[0].name


def _load(source: str | os.PathLike[str] | bytes, name: str, threads: int) -> ort.InferenceSession:
    data = source if isinstance(source, bytes) else read_bytes(Path(source), max_bytes=LARGEST_FILE)
    # The runtime itself believes what a file says: it would read other files, and fill any memory.
    check_expansion(read_model(data, name=name), name=name)
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common root
        raise ExportError(
            f"{name}: ONNX Runtime {ort.__version__} cannot load it: {_first_line(error)} "
            "The file may be damaged, or newer than this runtime."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
