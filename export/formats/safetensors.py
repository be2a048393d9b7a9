"""The weights alone, sparse, in one safetensors file that NumPy reads."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export.formats import Exported, Format
from robustcompress.export.onnx_writing import checked_images, put
from robustcompress.export.parity import largest_difference, logits_of
from robustcompress.export.rounding import round_values
from robustcompress.export.values import ValueType
from robustcompress.graph.folding import Folding, fold_batchnorm
from robustcompress.storage.codecs.dense import Dense
from robustcompress.storage.packed_file import read_packed, write_packed
from robustcompress.storage.sparse_file import write_tensors


class Safetensors(Format):
    """The tensors of the network's ``state_dict``, coded within a percent of the least that they need.

    For runtimes of one's own: ``docs/format.md`` says how to read the file in any language, and
    ``robustcompress/storage/numpy_reader.py`` does it with NumPy alone. It holds no graph.

    Attributes:
        fold: Fold batch normalisation into the layers before it first. ``False`` keeps the tensors that the
            network has, so that its ``load_state_dict`` takes them.
        values: How the values of weights are stored: as they are, or in fewer bits as in the format ``onnx``.
    """

    suffix: ClassVar[str] = ".safetensors"

    fold: bool = True
    values: ValueType = "float32"

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
        plain = _plain(network)
        expected = logits_of(plain, pixels)
        folding = fold_batchnorm(plain, pixels) if self.fold else Folding(plain, 0, ())
        rounded = round_values(folding.network, self.values)
        moved = 0.0
        if rounded.coded:
            before, expected = expected, logits_of(rounded.network, pixels)
            moved = float((expected - before).abs().max()) / (float(before.abs().max()) or 1.0)
        tensors = rounded.network.state_dict()
        details = {
            "batchnorm_folded": str(folding.folded),
            "values": self.values,
            "rounding_moved_logits": f"{moved:.3g}",
        }
        coded = {name: fewer for name, fewer in rounded.coded.items() if name in tensors}
        data = write_packed(tensors, coded=coded, about=metadata)
        found = copy.deepcopy(rounded.network)
        for parameter in (*found.parameters(), *found.buffers()):
            parameter.data.zero_()  # so that what the file lacks is missed
        found.load_state_dict(read_packed(data))
        _restore_unsaved(found, rounded.network)
        difference = largest_difference(expected, logits_of(found, pixels), where=path.name)
        return Exported(
            path=path,
            kind=self.kind,
            style="sparse",
            size_bytes=len(data),
            dense_size_bytes=len(write_tensors(tensors, codecs=[Dense()])),
            sha256=put(path, data),
            largest_difference=difference,
            images_compared=len(pixels),
            details=details,
        )


def _plain(network: nn.Module) -> nn.Module:
    """Return a float32 copy on the CPU, in eval mode."""
    try:
        return copy.deepcopy(network).cpu().float().eval()
    except Exception as error:  # whatever the user's modules do when copied
        raise ExportError(
            f"{type(network).__name__} cannot be copied to the CPU: {type(error).__name__}: {error}. "
            "Keep results of computations out of its attributes."
        ) from error


@torch.no_grad()
def _restore_unsaved(network: nn.Module, source: nn.Module) -> None:
    """Give ``network`` the buffers of ``source`` that a ``state_dict`` leaves out on purpose."""
    saved = source.state_dict()
    given = dict(source.named_buffers())
    for name, buffer in network.named_buffers():
        if name not in saved:
            buffer.copy_(given[name])
