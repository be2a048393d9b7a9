"""ONNX that computes in whole numbers: weights and activations of 8 bits, for ONNX Runtime."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export.compact import Group
from robustcompress.export.compact_quantised import compact_quantised
from robustcompress.export.formats import Exported, Format
from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.onnx_writing import checked_images, put, reference_copy, serialized
from robustcompress.export.parity import logits_of
from robustcompress.export.session import OnnxSession
from robustcompress.export.static_quantisation import WeightBits, checked_calibration, quantised
from robustcompress.export.tidy import tidy
from robustcompress.export.tracing import ENTRY_PREFIX, trace
from robustcompress.export.twin import read_twin
from robustcompress.graph.folding import fold_batchnorm

_VERSIONS = ("opset", "ir_version", "target")


class OnnxInt8(Format):
    """One ONNX file whose convolutions and matrix products a runtime computes in whole numbers.

    Weights are signed bytes with a scale for each output channel, symmetric, so that what a mask removed
    stays exactly zero; activations are unsigned bytes, whose ranges are learnt from calibration images, clean
    and adversarial. The file is smaller than a float one and faster where the processor has instructions for
    it; its robustness is another than the network's, and evaluations of a run attack the file itself.

    Attributes:
        style: ``compact`` stores sparse weights as codes, as in ``onnx``; ``dense`` stores every weight.
        weight_bits: 7 leaves weights room, so that sums do not saturate on processors without VNNI
            instructions and the file gives the same logits everywhere; 8 needs processors that have them.
        opset: As for ``onnx``.
        ir_version: As for ``onnx``.
        target: As for ``onnx``.
        group: As for ``onnx``.
    """

    suffix: ClassVar[str] = ".onnx"

    name: str = Field(default="model-int8", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    style: Literal["compact", "dense"] = "compact"
    weight_bits: WeightBits = 7
    opset: int = Field(default=18, ge=18, le=23)
    ir_version: int = Field(default=10, ge=8, le=10)
    target: str | None = None
    group: Group = "net"

    @model_validator(mode="after")
    def _fit_target(self) -> Self:
        asked = {name: getattr(self, name) for name in _VERSIONS if name in self.model_fields_set}
        try:
            fitted = Onnx(**asked)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        object.__setattr__(self, "opset", fitted.opset)  # settings are frozen for everybody else
        object.__setattr__(self, "ir_version", fitted.ir_version)
        return self

    def write(
        self,
        network: nn.Module,
        path: Path,
        *,
        images: Tensor,
        metadata: Mapping[str, str],
        calibration: Callable[[], Tensor] | None = None,
    ) -> Exported:
        path, pixels = Path(path), checked_images(images)
        reference = reference_copy(network)
        expected = logits_of(reference, pixels)
        shown = _calibration(calibration, pixels)
        folding = fold_batchnorm(reference, pixels)
        plain = tidy(trace(folding.network, pixels, opset=self.opset), prefix=ENTRY_PREFIX)
        whole = quantised(plain, shown, weight_bits=self.weight_bits)
        dense = serialized(whole, metadata, style="dense", ir_version=self.ir_version)
        data = dense
        if self.style == "compact":
            compacted = compact_quantised(whole, group=self.group)
            data = serialized(compacted, metadata, style="compact", ir_version=self.ir_version)
        is_compact = len(data) < len(dense)
        data = data if is_compact else dense
        session = OnnxSession(data, name=path.name)
        # What the file says, computed in PyTorch: proves that the runtime computes it.
        twin = read_twin(data, session, pixels)
        if is_compact:
            _prove_same(dense, data, pixels, name=path.name)
        found = session(pixels)
        moved = float((found - expected).abs().max()) / (float(expected.abs().max()) or 1.0)
        kept = (session(shown).argmax(1) == logits_of(reference, shown).argmax(1)).float().mean()
        return Exported(
            path=path,
            kind=self.kind,
            style="compact" if is_compact else "dense",
            size_bytes=len(data),
            dense_size_bytes=len(dense),
            sha256=put(path, data),
            largest_difference=twin.largest_difference,
            images_compared=len(images),
            details={
                "opset": str(self.opset),
                "ir_version": str(self.ir_version),
                "group": self.group,
                "batchnorm_folded": str(folding.folded),
                "batchnorm_left": str(len(folding.left)),
                "weight_bits": str(self.weight_bits),
                "calibration_images": str(len(shown)),
                "calibration_kept_classes": f"{float(kept):.4f}",
                "rounding_moved_logits": f"{moved:.3g}",
                **({} if self.target is None else {"target": self.target}),
            },
        )


def _calibration(calibration: Callable[[], Tensor] | None, images: Tensor) -> Tensor:
    if calibration is None:
        raise ExportError(
            "onnx_int8 learns the ranges of activations from images, and none were given. Export from a run, "
            "which makes clean and adversarial ones, or pass calibration."
        )
    return checked_calibration(calibration(), images)


def _prove_same(dense: bytes, compacted: bytes, images: Tensor, *, name: str) -> None:
    """Prove that a runtime computes the same bits from a compact file as from a dense one.

    Raises:
        ExportError: If one logit differs.
    """
    for size in (len(images), 1):
        expected, found = (
            OnnxSession(data, batch_size=size, name=name)(images) for data in (dense, compacted)
        )
        if not torch.equal(expected, found):
            raise ExportError(
                f"{name}: the compact file computes something else than the dense one, by "
                f"{float((expected - found).abs().max()):.3g}. Nothing was written. Export with style dense, "
                "or report the network that did this."
            )
