"""Weights and activations in whole numbers, by ONNX Runtime's static quantiser."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

import onnx
from onnx import ModelProto
from torch import Tensor

from robustcompress.errors import ExportError
from robustcompress.export.tidy import tidy

WeightBits: TypeAlias = Literal[7, 8]

# Normalisation that could not be folded stays in float32: its weights have no scale for each channel here.
_QUANTISED = [
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat"),
    *("AveragePool", "GlobalAveragePool", "MaxPool"),
    *("Clip", "Relu", "Flatten", "Reshape", "Transpose"),
]


def quantised(model: ModelProto, calibration: Tensor, *, weight_bits: WeightBits) -> ModelProto:
    """Return ``model`` with weights, biases and activations in whole numbers, between nodes that say so.

    Weights are signed and symmetric, with a scale for each output channel, so that a removed weight stays
    exactly zero; activations are unsigned bytes whose ranges are the largest that ``calibration`` shows.
    Logits stay in float32: steps of a byte would be a hundredth of the largest one. Equal input gives equal
    output.

    Args:
        model: Dense, batch normalisation folded; inner values and weights in float32. It is not changed.
        calibration: float32 ``[n, ...]`` on the CPU.
        weight_bits: 7 leaves room for processors without VNNI instructions, whose sums of products of two
            bytes saturate; 8 is for those that have them.

    Raises:
        ExportError: If ONNX Runtime cannot quantise the model.
    """
    # A second's import that no other format should wait for.
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from robustcompress.export.calibration import Calibration

    given = ModelProto()
    given.CopyFrom(model)
    with TemporaryDirectory(prefix="robustcompress-") as folder, _silence():
        path = Path(folder) / "quantised.onnx"
        try:
            quantize_static(
                given,
                path,
                Calibration(model.graph.input[0].name, calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_QUANTISED,
                per_channel=True,
                reduce_range=weight_bits == 7,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
            )
            found = onnx.load(path)
        except Exception as error:  # the quantiser raises whatever its parts do
            raise ExportError(
                f"ONNX Runtime cannot quantise the network: {type(error).__name__}: {error}. Export it as "
                "'onnx' with values int8, which rounds weights alone."
            ) from error
    found.ir_version = model.ir_version
    return tidy(_with_float_output(found))


def checked_calibration(calibration: Tensor, images: Tensor) -> Tensor:
    """Return calibration images as float32 on the CPU.

    Args:
        calibration: Floating point ``[n, ...]``.
        images: Those that the network is compared on, of the shape that calibration images must have.

    Raises:
        ExportError: If there are none, their shape is another, or a pixel is not finite.
    """
    found = calibration.detach().cpu().float()
    if found.shape[1:] != images.shape[1:] or len(found) == 0:
        raise ExportError(
            f"calibration images must be [n, {', '.join(str(size) for size in images.shape[1:])}], at least "
            f"one; got {list(found.shape)}. Give images that the network takes."
        )
    if not bool(found.isfinite().all()):
        raise ExportError("calibration images hold NaN or infinite pixels. Give the network's own images.")
    return found


def _with_float_output(model: ModelProto) -> ModelProto:
    """Take away what rounds the logits, in place."""
    graph = model.graph
    output = graph.output[0].name
    made_by = {name: node for node in graph.node for name in node.output}
    last = made_by.get(output)
    before = made_by.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
    if last is None or before is None or before.op_type != "QuantizeLinear" or before.input[0] not in made_by:
        return model
    logits = before.input[0]
    kept = [node for node in graph.node if node is not last and node is not before]
    for node in kept:
        if logits in node.output or logits in node.input:
            node.output[:] = [output if name == logits else name for name in node.output]
            node.input[:] = [output if name == logits else name for name in node.input]
    read = {name for node in kept for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(constants)
    return model


@contextmanager
def _silence() -> Generator[None]:
    """Keep the quantiser's advice to itself; its log lines would also give the root logger a handler."""
    root = logging.getLogger()
    level, handler = root.level, logging.NullHandler()
    root.addHandler(handler)
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
