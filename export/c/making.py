"""Make the C file of an ONNX model and prove it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from onnx import ModelProto
from torch import Tensor

from robustcompress.errors import ExportError
from robustcompress.export.c.compiling import computed_logits, find_compiler
from robustcompress.export.c.reading import read
from robustcompress.export.c.reference import reference_logits
from robustcompress.export.c.storing import round_layers
from robustcompress.export.c.writing import CFile, write_c
from robustcompress.export.parity import largest_difference

CValues: TypeAlias = Literal["float32", "float16", "int8"]
Lanes: TypeAlias = Literal[4, 8, 16]
Convolutions: TypeAlias = Literal["auto", "sparse", "dense"]


@dataclass(frozen=True)
class Settings:
    """What a C file is to be.

    Attributes:
        name: Prefix of everything that it defines.
        values: How weights of layers are stored; what is not float32 is decoded when a layer runs.
        lanes: Floats of the vectors that it is to be best for; it is correct with all.
        convolutions: Whether layers sum over kept weights only or over all; ``auto`` chooses for each layer.
        unproven: Go on where no compiler is installed to prove the file with.
    """

    name: str
    values: CValues = "float32"
    lanes: Lanes = 8
    convolutions: Convolutions = "auto"
    unproven: bool = False


@dataclass(frozen=True, eq=False)
class MadeC:
    """A C file and its proof.

    Attributes:
        file: With its header.
        difference: Of logits, over the largest logit; 0 if nothing was compared.
        compared: On how many images.
        details: For reports.
    """

    file: CFile
    difference: float
    compared: int
    details: Mapping[str, str]


def identifier(name: str) -> str:
    """Return ``name`` as a C identifier: the prefix of a file of that name."""
    letters = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:24]
    return letters if letters[:1].isalpha() and not letters.startswith("NAME") else f"n_{letters}"


def make_c(
    model: ModelProto,
    pixels: Tensor,
    expected: Tensor,
    settings: Settings,
    *,
    where: str,
    about: Sequence[str] = (),
) -> MadeC:
    """Return the C file of a model, compiled and compared on images.

    Two proofs: what was read from the model computes the expected logits; the compiled file computes what
    was read, with weights as they are stored.

    Args:
        model: One input, one output.
        pixels: float32 ``[batch, ...]``, images.
        expected: Logits of the network on them, ``[batch, classes]``.
        settings: Of the file.
        where: Names the file in errors.
        about: Lines for the comment on top of the file.

    Raises:
        ExportError: If the model holds what C files do not have, the file computes something else, or there
            is no compiler to show that it does not.
    """
    compiler = find_compiler()
    if compiler is None and not settings.unproven:
        raise ExportError(
            f"{where}: no C compiler (cc, clang, gcc) is installed, so the file cannot be proven to compute "
            "what the network does. Install one, or set unproven: true."
        )
    plain = read(model, image_shape=tuple(pixels.shape[1:]))
    largest_difference(expected, reference_logits(plain, pixels), where=f"{where}, as read from the graph")
    network = round_layers(plain, settings.values)
    rounded = reference_logits(network, pixels)
    file = write_c(
        network,
        name=settings.name,
        image=pixels[0].numpy(),
        logits=rounded[0].numpy(),
        lanes=settings.lanes,
        values=settings.values,
        sparse={"auto": None, "sparse": True, "dense": False}[settings.convolutions],
        comment="\n".join(about),
    )
    details = _details(file, settings, compiler)
    if settings.values != "float32":
        scale = float(expected.abs().max()) or 1.0
        details["rounding_moved_logits"] = f"{float((rounded - expected).abs().max()) / scale:.3g}"
    if compiler is None:
        return MadeC(file, 0.0, 0, details)
    truth = expected if settings.values == "float32" else rounded
    found = computed_logits(file, pixels, classes=expected.shape[1], compiler=compiler)
    return MadeC(file, largest_difference(truth, found, where=where), len(pixels), details)


def _details(file: CFile, settings: Settings, compiler: str | None) -> dict[str, str]:
    """Return what a report shows of the file; of the layers the multiply-adds that are left."""
    macs, left = (
        sum(part) for part in zip(*((item.macs, item.sparse_macs) for item in file.layers), strict=True)
    )
    return {
        "values": settings.values,
        "lanes": str(settings.lanes),
        "workspace_bytes": str(file.workspace_bytes),
        "macs": str(macs),
        "effective_sparse_macs": str(left),
        "layers_dense": ", ".join(item.name for item in file.layers if item.is_dense) or "none",
        "sparse_macs_by_layer": ", ".join(f"{item.name}: {item.sparse_macs}" for item in file.layers),
        "proven_with": Path(compiler).name if compiler else "nothing: no compiler is installed",
    }


def dense_text_bytes(file: CFile) -> int:
    """Return how long the file would be with every weight: zeros as ``0,``, and no offsets of taps."""
    zeros = sum(item.weights - item.kept for item in file.layers if not item.is_dense)
    offsets = sum(
        len(text)
        for text in re.findall(r"static const int32_t \w+_offsets\d+\[\d+\] = \{[^}]*\};", file.source)
    )
    return len(file.source.encode()) - offsets + 2 * zeros
