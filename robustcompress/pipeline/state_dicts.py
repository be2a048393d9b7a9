"""The tensors of an artifact as a plain dense ``state_dict``, for code that knows nothing of this library."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from robustcompress.errors import ConfigError, StorageError
from robustcompress.families import suggestion
from robustcompress.pipeline.rebuilding import build
from robustcompress.storage.artifact import load_artifact
from robustcompress.storage.atomic import write_bytes
from robustcompress.storage.checkpoint_file import read_checkpoint
from robustcompress.storage.dtypes import to_array
from robustcompress.storage.rebuild import load_into
from robustcompress.zoo.foreign_names import namings

_SUFFIXES = (".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class StateDict:
    """A file that was written and read back bit for bit.

    Attributes:
        path: The file.
        naming: Whose names its tensors have.
        tensors: How many there are.
        size_bytes: Length of the file.
    """

    path: Path
    naming: str
    tensors: int
    size_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**vars(self), "path": str(self.path)}


def write_state_dict(
    folder: str | Path,
    path: str | Path,
    *,
    names: str = "own",
    model: nn.Module | None = None,
    allow_import: bool = False,
) -> StateDict:
    """Write the network of an artifact as one dense ``state_dict``, zeros and all, and read it back.

    Args:
        folder: An artifact: ``run_dir/artifact``, one stage's, or an imported one.
        path: ``.pt`` or ``.pth``, which ``torch.load(path, weights_only=True)`` reads, or ``.safetensors``;
            never overwritten.
        names: Whose names the tensors get: ``own`` or, for networks of the zoo, ``hydra`` or ``torchvision``.
        model: The dense network, where it is not of the zoo and ``names`` is not ``own``.
        allow_import: Let the artifact import the factory that it names.

    Raises:
        ConfigError: If ``path`` exists or has another suffix, or the network has no such names.
        StorageError: If the artifact cannot be read or the file not be written.
    """
    folder, path = Path(folder), Path(path)
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"expected a file {', '.join(_SUFFIXES)}; got {path}.")
    if path.exists():
        raise ConfigError(f"{path} exists already and is never overwritten. Name another file.")
    artifact = load_artifact(folder)
    tensors = dict(artifact.tensors)
    if names != "own":
        if model is None:
            model = build(artifact.architecture, where=folder, allow_import=allow_import)
        load_into(model, tensors)
        known = {naming.name: naming.theirs for naming in namings(model)}
        if names not in known:
            raise ConfigError(
                f"the network has no names {names!r}.{suggestion(names, list(known))} It has "
                f"{', '.join(known)}."
            )
        tensors = {theirs: tensors[ours] for ours, theirs in known[names].items()}
    data = _written(tensors, path.suffix)
    write_bytes(path, data)
    _check(path, tensors)
    return StateDict(path=path, naming=names, tensors=len(tensors), size_bytes=len(data))


def _written(tensors: dict[str, Tensor], suffix: str) -> bytes:
    # Each tensor by itself: of a view torch.save would write the whole storage, and safetensors refuses ties.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    if suffix == ".safetensors":
        return to_safetensors(plain)
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    return buffer.getvalue()


def _check(path: Path, tensors: dict[str, Tensor]) -> None:
    found = read_checkpoint(path).tensors
    same = found.keys() == tensors.keys() and all(
        found[name].dtype == tensor.dtype
        and to_array(name, found[name])[1].tobytes() == to_array(name, tensor)[1].tobytes()
        for name, tensor in tensors.items()
    )
    if not same:
        path.unlink()
        raise StorageError(f"{path}: what was written does not read back the same. Is the disk sound?")
