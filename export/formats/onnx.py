"""ONNX, for ONNX Runtime and whatever else reads it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from robustcompress.errors import ConfigError, ExportError
from robustcompress.export.compact import Group, compact, matching
from robustcompress.export.formats import Exported, Format
from robustcompress.export.onnx_writing import checked_images, put, reference_copy, serialized
from robustcompress.export.parity import logits_of, prove_equal
from robustcompress.export.rounding import round_values
from robustcompress.export.targets import limits_of
from robustcompress.export.tidy import tidy
from robustcompress.export.tracing import ENTRY_PREFIX, trace
from robustcompress.export.values import ValueType
from robustcompress.graph.folding import Folding, fold_batchnorm


class Onnx(Format):
    """One ONNX file with everything inside: weights, folded batch normalisation, metadata.

    The input ``images`` takes float32 images in [0, 1] in a batch of any size, the output is ``logits``.

    Attributes:
        style: ``compact`` stores sparse weights as Golomb-Rice codes, which stock operators decode when a
            runtime loads the file; ``dense`` stores every weight, for tools that cannot fold constants.
        opset: Version of the operators. 18 is the oldest that torch's exporter writes.
        ir_version: Of the file format. Take 8 for runtimes that are too old for 10.
        target: The oldest runtime that is to load the file, such as ``onnxruntime>=1.17``: lowers opset and
            IR version to what that understands, and refuses newer ones that are asked for.
        group: ``net`` decodes as many weights at once as pays, which is smallest; ``layer`` decodes each
            on its own, which needs less memory while loading.
        values: How the values of weights are stored in a compact file. ``float16`` rounds them; ``int8``,
            ``int6`` and ``int4`` are whole numbers with a scale for each output channel. Biases are stored
            in float16 then. A runtime decodes all to float32 when it loads the file: what shrinks is the
            file, and its robustness is to be measured again (evaluations of a run attack the file itself).
            A mapping says it by glob of layer names (the longest that fits counts, the rest stays float32);
            ``mixed`` has a run choose for each layer by the robust accuracy that it costs.
        largest_drop: What ``mixed`` may cost in all, 0 to 1, of robust accuracy on held-out images.
    """

    suffix: ClassVar[str] = ".onnx"

    style: Literal["compact", "dense"] = "compact"
    opset: int = Field(default=18, ge=18, le=23)
    ir_version: int = Field(default=10, ge=8, le=10)
    target: str | None = None
    group: Group = "net"
    values: ValueType | Literal["mixed"] | dict[str, ValueType] = "float32"
    largest_drop: float = Field(default=0.01, ge=0, le=1)

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.style == "dense" and self.values != "float32":
            raise ValueError(f"values={self.values} need style compact; a dense file stores float32")
        return self

    @model_validator(mode="after")
    def _fit_target(self) -> Self:
        if self.target is None:
            return self
        try:
            limits = limits_of(self.target)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        for name, most in (("opset", limits.opset), ("ir_version", limits.ir_version)):
            asked: int = getattr(self, name)
            if asked > most and name in self.model_fields_set:
                raise ValueError(f"{name}={asked} is newer than what {self.target} reads, {most} at most")
            object.__setattr__(self, name, min(asked, most))  # settings are frozen for everybody else
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
        path = Path(path)
        pixels = checked_images(images)
        reference = reference_copy(network)
        expected = logits_of(reference, pixels)
        folding = fold_batchnorm(reference, pixels)
        if self.values == "mixed":
            raise ExportError(
                "values mixed are chosen by a run, which has images to measure robust accuracy on. Export "
                "from a run, or say what each layer is stored in: values={'*': 'int8'}."
            )
        rounded = round_values(folding.network, self.values)
        moved = 0.0
        if rounded.coded:
            before, expected = expected, logits_of(rounded.network, pixels)
            moved = float((expected - before).abs().max()) / (float(before.abs().max()) or 1.0)
        plain = tidy(trace(rounded.network, pixels, opset=self.opset), prefix=ENTRY_PREFIX)
        dense = serialized(plain, metadata, style="dense", ir_version=self.ir_version)
        coded = plain
        if self.style == "compact":
            coded = compact(plain, group=self.group, coded=matching(plain, rounded.coded))
        is_compact = len(coded.graph.node) > len(plain.graph.node)
        data = dense
        if is_compact:
            data = serialized(coded, metadata, style="compact", ir_version=self.ir_version)
        difference = prove_equal(expected, data, pixels, name=path.name)
        digest = put(path, data)
        return Exported(
            path=path,
            kind=self.kind,
            style="compact" if is_compact else "dense",
            size_bytes=len(data),
            dense_size_bytes=len(dense),
            sha256=digest,
            largest_difference=difference,
            images_compared=len(images),
            details={**self._details(folding), **self._rounding(moved)},
        )

    def _rounding(self, moved: float) -> dict[str, str]:
        if self.values == "float32":
            return {}
        said = self.values if isinstance(self.values, str) else json.dumps(self.values, sort_keys=True)
        return {"values": said, "rounding_moved_logits": f"{moved:.3g}"}

    def _details(self, folding: Folding) -> dict[str, str]:
        details = {
            "opset": str(self.opset),
            "ir_version": str(self.ir_version),
            "group": self.group,
            "batchnorm_folded": str(folding.folded),
            "batchnorm_left": str(len(folding.left)),
        }
        if self.target is not None:
            details["target"] = self.target
        if folding.skipped_reason is not None:
            details["batchnorm_skipped"] = folding.skipped_reason
        return details
