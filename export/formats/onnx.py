"""ONNX, for ONNX Runtime and whatever else reads it."""

import copy
import hashlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal, Self

import onnx
from pydantic import Field, model_validator
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export.compact import Group, compact, matching
from robustcompress.export.formats import Exported, Format
from robustcompress.export.onnx_file import STYLE_KEY
from robustcompress.export.parity import logits_of, prove_equal
from robustcompress.export.rounding import round_values
from robustcompress.export.tidy import tidy
from robustcompress.export.tracing import ENTRY_PREFIX, trace
from robustcompress.export.values import ValueType
from robustcompress.graph.folding import Folding, fold_batchnorm
from robustcompress.storage.atomic import write_bytes

_LARGEST_FILE = 2**31 - 2**20  # protobuf's limit, less room for the graph


class Onnx(Format):
    """One ONNX file with everything inside: weights, folded batch normalisation, metadata.

    The input ``images`` takes float32 images in [0, 1] in a batch of any size, the output is ``logits``.

    Attributes:
        style: ``compact`` stores sparse weights as Golomb-Rice codes, which stock operators decode when a
            runtime loads the file; ``dense`` stores every weight, for tools that cannot fold constants.
        opset: Version of the operators. 18 is the oldest that torch's exporter writes.
        ir_version: Of the file format. Take 8 for runtimes that are too old for 10.
        group: ``net`` decodes as many weights at once as pays, which is smallest; ``layer`` decodes each
            on its own, which needs less memory while loading.
        values: How the values of weights are stored in a compact file. ``float16`` rounds them; ``int8``,
            ``int6`` and ``int4`` are whole numbers with a scale for each output channel. Biases are stored
            in float16 then. A runtime decodes all to float32 when it loads the file: what shrinks is the
            file, and its robustness is to be measured again (evaluations of a run attack the file itself).
    """

    suffix: ClassVar[str] = ".onnx"

    style: Literal["compact", "dense"] = "compact"
    opset: int = Field(default=18, ge=18, le=23)
    ir_version: int = Field(default=10, ge=8, le=10)
    group: Group = "net"
    values: ValueType = "float32"

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.style == "dense" and self.values != "float32":
            raise ValueError(f"values={self.values} need style compact; a dense file stores float32")
        return self

    def write(
        self, network: nn.Module, path: Path, *, images: Tensor, metadata: Mapping[str, str]
    ) -> Exported:
        if not images.is_floating_point() or images.ndim < 2 or len(images) == 0:
            raise ExportError(
                f"images to compare on must be floating point [batch, ...], at least one; "
                f"got {images.dtype} {list(images.shape)}."
            )
        _check_size(network)
        path = Path(path)
        pixels = images.detach().cpu().float()
        reference = _reference(network)
        expected = logits_of(reference, pixels)
        folding = fold_batchnorm(reference, pixels)
        rounded = round_values(folding.network, self.values)
        moved = 0.0
        if rounded.coded:
            before, expected = expected, logits_of(rounded.network, pixels)
            moved = float((expected - before).abs().max()) / (float(before.abs().max()) or 1.0)
        plain = tidy(trace(rounded.network, pixels, opset=self.opset), prefix=ENTRY_PREFIX)
        dense = self._serialized(plain, metadata, style="dense")
        coded = plain
        if self.style == "compact":
            coded = compact(plain, group=self.group, coded=matching(plain, rounded.coded))
        is_compact = len(coded.graph.node) > len(plain.graph.node)
        data = self._serialized(coded, metadata, style="compact") if is_compact else dense
        difference = prove_equal(expected, data, pixels, name=path.name)
        write_bytes(path, data)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != hashlib.sha256(data).hexdigest():
            path.unlink()
            raise ExportError(f"{path}: the disk gave back other bytes than were written. Check the disk.")
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

    def _serialized(self, model: onnx.ModelProto, metadata: Mapping[str, str], *, style: str) -> bytes:
        """Return the bytes of ``model`` with its metadata; the same ones for the same input."""
        model.ir_version = self.ir_version
        onnx.helper.set_model_props(model, dict(sorted({**metadata, STYLE_KEY: style}.items())))
        try:
            onnx.checker.check_model(model, full_check=True)
            data: bytes = model.SerializeToString(deterministic=True)
        except Exception as error:  # the checker's and protobuf's, which have no common root
            raise ExportError(f"the {style} model is not valid ONNX: {error}") from error
        return data

    def _rounding(self, moved: float) -> dict[str, str]:
        if self.values == "float32":
            return {}
        return {"values": self.values, "rounding_moved_logits": f"{moved:.3g}"}

    def _details(self, folding: Folding) -> dict[str, str]:
        details = {
            "opset": str(self.opset),
            "ir_version": str(self.ir_version),
            "group": self.group,
            "batchnorm_folded": str(folding.folded),
            "batchnorm_left": str(len(folding.left)),
        }
        if folding.skipped_reason is not None:
            details["batchnorm_skipped"] = folding.skipped_reason
        return details


def _reference(network: nn.Module) -> nn.Module:
    """Return a float32 copy on the CPU, in eval mode."""
    try:
        return copy.deepcopy(network).cpu().float().eval()
    except Exception as error:  # whatever the user's modules do when copied
        raise ExportError(
            f"{type(network).__name__} cannot be copied to the CPU: {type(error).__name__}: {error}. "
            "Keep results of computations out of its attributes."
        ) from error


def _check_size(network: nn.Module) -> None:
    """Refuse before copying anything what one protobuf message cannot hold."""
    size = sum(4 * tensor.numel() for tensor in chain(network.parameters(), network.buffers()))
    if size > _LARGEST_FILE:
        raise ExportError(
            f"an ONNX file holds at most 2 GB; this network has {size / 1e9:.1f} GB of weights in float32. "
            "Compact it first (pattern: channel)."
        )
