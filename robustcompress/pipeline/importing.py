"""Other people's checkpoints become artifacts, and artifacts plain state dicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustcompress.errors import ConfigError, StorageError
from robustcompress.pipeline.context import versions
from robustcompress.pipeline.foreign_tensors import Matched, match
from robustcompress.pipeline.rebuilding import build
from robustcompress.pruning.hydra_masks import hydra_mask
from robustcompress.pruning.patterns import PRUNABLE
from robustcompress.recipe import Factory
from robustcompress.storage.artifact import Artifact, has_artifact, save_artifact
from robustcompress.storage.checkpoint_file import read_checkpoint
from robustcompress.storage.rebuild import load_into
from robustcompress.zoo.networks import Network

SCORES = ".popup_scores"
"""What HYDRA appends to a layer's name to call its scores."""


@dataclass(frozen=True)
class Imported:
    """What became of a checkpoint.

    Attributes:
        folder: The artifact.
        key: The checkpoint's entry that held the tensors; empty if they were the whole of it.
        naming: Whose names the tensors had: ``own`` if the network's.
        tensors: How many parameters and buffers the network took.
        masked: Weights kept and size of each layer that has scores, by name.
        without_scores: Layers without scores in a checkpoint that has some: they are dense, and a recipe
            that goes on with the masks must name them in ``ignore``.
        dropped: Entries that were left out: dead ones, and those that the caller named.
        kept_as_built: Tensors of the network that the checkpoint lacks and that need none: counters of
            batches, and what normalises images.
    """

    folder: Path
    key: str
    naming: str
    tensors: int
    masked: Mapping[str, Mapping[str, int]]
    without_scores: tuple[str, ...]
    dropped: tuple[str, ...]
    kept_as_built: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """Fraction of the weights of masked layers that are removed; 0.0 if no layer is masked."""
        size = sum(counts["size"] for counts in self.masked.values())
        kept = sum(counts["kept"] for counts in self.masked.values())
        return 1 - kept / size if size else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**vars(self), "folder": str(self.folder), "sparsity": self.sparsity}


def import_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    network: nn.Module | Network | str | Mapping[str, object],
    k: float | None = None,
    key: str | None = None,
    drop: Sequence[str] = (),
    keep_removed: bool = False,
    allow_import: bool = False,
) -> Imported:
    """Turn a checkpoint of HYDRA's code, or a dense ``state_dict``, into an artifact.

    Prefixes such as ``module.`` are taken off and the names of HYDRA, torchvision, timm and RobustBench
    are understood for networks of the zoo; every other network must have the checkpoint's own names.
    Weights, scores and masks are taken over bit for bit. Pickles are read without running their code.

    Args:
        path: A file of ``torch.save`` or ``.safetensors``.
        out: Folder of the artifact; it is made.
        network: One of the zoo, its name or its settings; ``package.module:factory`` (with
            ``allow_import``); or a module, which is changed: it takes the weights.
        k: The fraction of weights kept, which HYDRA's checkpoints do not say; 1 for one before pruning.
        key: The checkpoint's entry that holds the tensors; ``None`` looks in the usual ones.
        drop: Globs of the checkpoint's entries to leave out, as it names them without prefix.
        keep_removed: Keep the values of weights that the masks remove. The artifact is then as after the
            stage prune, whose network is dense until its masks are applied; otherwise they become 0, as in
            the network that the checkpoint computes.
        allow_import: Import the factory that ``network`` names.

    Raises:
        StorageError: If the file cannot be read or is refused, or its tensors are not those of ``network``.
        ConfigError: If ``network`` or ``k`` is wrong or missing, or ``out`` holds an artifact already.
    """
    path, out = Path(path), Path(out)
    if has_artifact(out):
        raise ConfigError(
            f"{out} holds an artifact already, which is never overwritten. Name another folder."
        )
    module, architecture = _built(network, allow_import=allow_import)
    checkpoint = read_checkpoint(path, key=key)
    dropped = [name for name in checkpoint.tensors if any(fnmatchcase(_bare(name), glob) for glob in drop)]
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in dropped}
    scored = any(name.endswith(SCORES) for name in kept)
    if scored != (k is not None):
        raise ConfigError(_about_k(path, scored=scored))
    matched = match(module, kept, where=path, companion=SCORES)
    load_into(module, matched.tensors)
    masks = {} if k is None else _masks(module, matched, k)
    if not keep_removed:
        for name, mask in masks.items():
            module.get_parameter(f"{name}.weight").data.masked_fill_(~mask, 0.0)
    found = Imported(
        folder=out,
        key=checkpoint.key,
        naming=matched.naming,
        tensors=len(matched.tensors),
        masked={name: {"size": m.numel(), "kept": int(m.sum())} for name, m in masks.items()},
        without_scores=tuple(name for name in _prunable(module) if masks and name not in masks),
        dropped=(*dropped, *matched.dropped),
        kept_as_built=matched.kept_as_built,
    )
    save_artifact(_artifact(module, architecture, matched, masks, found, keep_removed), out)
    return found


def _built(
    network: nn.Module | Network | str | Mapping[str, object], *, allow_import: bool
) -> tuple[nn.Module, dict[str, object]]:
    """Return the network and what an artifact says of it."""
    if isinstance(network, nn.Module):
        return network, {}
    member: Network | Factory
    try:
        if isinstance(network, str) and ":" in network:
            member = Factory(factory=network)
        elif isinstance(network, Mapping) and "factory" in network:
            member = Factory.model_validate(dict(network))
        else:
            member = Network.find(dict(network) if isinstance(network, Mapping) else network)
    except ValueError as error:
        raise ConfigError(f"network: {error}") from error
    if isinstance(member, Factory) and not allow_import:
        raise ConfigError(
            f"the network {member.factory!r} runs that module's code when it is imported. Pass "
            "--allow-import (command line) or allow_import=True (Python) if you trust it."
        )
    architecture: dict[str, object] = member.model_dump(mode="json")
    return build(architecture, where="network", allow_import=allow_import), architecture


def _about_k(path: Path, *, scored: bool) -> str:
    if scored:
        return (
            f"{path} has HYDRA's scores but does not say which fraction of the weights they keep. Give it as "
            "the run was given it: --k 0.1 (command line) or k=0.1 (Python); 1 if it was not pruned yet."
        )
    return f"{path} has no {SCORES[1:]}, so that k means nothing. Leave it out for a dense checkpoint."


def _bare(name: str) -> str:
    return name.removeprefix("module.").removeprefix("_orig_mod.")


def _prunable(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, PRUNABLE)]


def _masks(module: nn.Module, matched: Matched, k: float) -> dict[str, Tensor]:
    """Return the mask of each layer that has scores, by its name; none where everything is kept."""
    found: dict[str, Tensor] = {}
    for name, scores in matched.companions.items():
        layer, _, attribute = name.rpartition(".")
        shape = tuple(module.get_parameter(name).shape)
        if attribute != "weight" or tuple(scores.shape) != shape:
            raise StorageError(
                f"scores of {name}: expected {list(shape)} as its weight has; got {list(scores.shape)}. The "
                "checkpoint is damaged."
            )
        found[layer] = hydra_mask(scores, k)
    return {} if k == 1 else found


def _artifact(
    module: nn.Module,
    architecture: Mapping[str, object],
    matched: Matched,
    masks: Mapping[str, Tensor],
    found: Imported,
    keep_removed: bool,
) -> Artifact:
    extra: dict[str, Tensor] = {}
    for name, mask in masks.items():
        extra[f"scores.{name}"] = matched.companions[f"{name}.weight"]
        extra[f"mask.{name}"] = mask
    facts = {name: value for name, value in found.as_dict().items() if name not in ("folder", "masked")}
    return Artifact(
        stage="pretrain" if not masks else "prune" if keep_removed else "finetune",
        tensors={name: tensor.detach().cpu() for name, tensor in module.state_dict().items()},
        seed=0,
        architecture=architecture,
        metrics={"imported": facts},
        sparsity=found.masked,
        versions=versions(),
        extra_tensors=extra,
    )
