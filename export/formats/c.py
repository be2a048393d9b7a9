"""One C99 file: the network and nothing else, for any machine with a compiler."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from robustcompress.export.c.making import (
    Convolutions,
    CValues,
    Lanes,
    Settings,
    dense_text_bytes,
    identifier,
    make_c,
)
from robustcompress.export.formats import Exported, Format
from robustcompress.export.onnx_writing import checked_images, put, reference_copy
from robustcompress.export.parity import logits_of
from robustcompress.export.tidy import tidy
from robustcompress.export.tracing import ENTRY_PREFIX, trace
from robustcompress.graph.folding import fold_batchnorm

_OPSET = 18
_ABOUT = ("robustcompress.version", "robustcompress.threat", "robustcompress.sparsity")


class C(Format):
    """A C99 file of the network with weights inside, and a header.

    Removed weights cost nothing: sums go over those that are left. The file needs no library and allocates
    nothing; ``NAME_run`` takes one image of floats in [0, 1] and a workspace. What can be written is in
    ``docs/c.md``; anything else is refused by its operator's name.

    Attributes:
        values: How weights are stored. ``float16`` and ``int8`` (a scale for each output channel) make the
            program smaller; each layer decodes them when it runs. Robustness is to be measured again.
        lanes: Floats of the vectors that the file is best for: 4 (SSE2, NEON), 8 (AVX2) or 16 (AVX-512). It
            is correct with all, and the compiler's flags choose.
        convolutions: ``auto`` chooses for each layer whether to sum over the weights that are left or all
            of them; ``sparse`` and ``dense`` choose one for all layers.
        unproven: Write the file even if no C compiler is installed to prove it with.
    """

    suffix: ClassVar[str] = ".c"

    values: CValues = "float32"
    lanes: Lanes = 8
    convolutions: Convolutions = "auto"
    unproven: bool = False

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
        model = tidy(trace(folding.network, pixels, opset=_OPSET), prefix=ENTRY_PREFIX)
        settings = Settings(
            name=identifier(path.stem),
            values=self.values,
            lanes=self.lanes,
            convolutions=self.convolutions,
            unproven=self.unproven,
        )
        about = [f"{key}: {metadata[key]}" for key in _ABOUT if key in metadata]
        made = make_c(
            model, pixels, expected, settings, where=path.name, about=[f"{path.name}: a network in C", *about]
        )
        data = made.file.source.encode()
        put(path.with_suffix(".h"), made.file.header.encode())
        digest = put(path, data)
        return Exported(
            path=path,
            kind=self.kind,
            style=self.convolutions,
            size_bytes=len(data),
            dense_size_bytes=dense_text_bytes(made.file),
            sha256=digest,
            largest_difference=made.difference,
            images_compared=made.compared,
            details={**made.details, "header": path.with_suffix(".h").name},
        )
