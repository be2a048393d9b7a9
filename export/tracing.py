"""Turn a PyTorch network into a plain ONNX model, by torch's own exporter."""

import io
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr

import torch
from onnx import ModelProto
from torch import Tensor, nn

from robustcompress.errors import ExportError

ENTRY_PREFIX = "network."
INPUT = "images"
OUTPUT = "logits"

_LOGGERS = (
    "torch.export",
    "torch.fx",
    "torch.onnx",
    "torch._dynamo",
    "torch._subclasses",
    "onnxscript",
    "onnx_ir",
)
_ADVICE = (
    "The forward of the network must be one fixed sequence of torch operations: no Python branch on pixel "
    "values, no conversion to NumPy, no batch size written as a number."
)


class _Entry(nn.Module):
    """Gives every network the same signature, whatever its forward calls its arguments."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits.float()


def trace(network: nn.Module, images: Tensor, *, opset: int) -> ModelProto:
    """Return ``network`` as an ONNX model with weights inside and a batch of any size.

    Random state is as before afterwards. Names are the exporter's, parameters under ``network.``.

    Args:
        network: In eval mode, on the CPU, float32.
        images: float32 ``[batch, ...]``; one suffices, its values do not matter.
        opset: Version of the ONNX operators.

    Raises:
        ExportError: If torch cannot trace the network or ONNX has no operator for a part of it.
    """
    example = images[:1].repeat(2, *[1] * (images.ndim - 1))  # torch takes a batch of 1 for a constant
    batch = torch.export.Dim("batch")
    with _silence(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            program = torch.export.export(
                _Entry(network).eval(), (example,), dynamic_shapes={"images": {0: batch}}, strict=False
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=opset,
                optimize=True,
                verbose=False,
            )
            assert exported is not None  # as torch promises for dynamo=True
            model = exported.model_proto
        except Exception as error:  # the user's own code runs here, and torch raises many kinds
            raise ExportError(
                f"{type(network).__name__} cannot be exported to ONNX: {_reason(error)} {_ADVICE}"
            ) from error
    found = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    if found != opset:
        raise ExportError(f"asked torch's exporter for opset {opset}; got {found}. Choose opset {found}.")
    return model


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong at the bottom, with a full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}".rstrip(".") + "."


@contextmanager
def _silence() -> Generator[None]:
    """Keep the exporter's warnings, log lines and printed graphs to itself: the error carries the reason."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
