"""Find out which tensor of somebody else's checkpoint is which of a network."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcompress.errors import StorageError
from robustcompress.storage.strict_json import shown
from robustcompress.zoo.foreign_names import Naming, namings
from robustcompress.zoo.normalized import Normalized

_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_COUNTER = "num_batches_tracked"  # older versions of torch saved none; inference needs none


@dataclass(frozen=True)
class Matched:
    """A checkpoint's tensors under a network's own names.

    Attributes:
        naming: Whose names they had.
        tensors: The whole ``state_dict`` of the network.
        companions: What lies beside parameters of the network, such as scores, by the parameter's name.
        dropped: Names of tensors that the other network does not compute with.
        kept_as_built: Names of the network's tensors that the checkpoint has none for.
    """

    naming: str
    tensors: dict[str, Tensor]
    companions: dict[str, Tensor]
    dropped: tuple[str, ...]
    kept_as_built: tuple[str, ...]


def match(network: nn.Module, saved: Mapping[str, Tensor], *, where: Path, companion: str) -> Matched:
    """Return ``saved`` under the names that ``network`` has for its tensors; neither is changed.

    Args:
        network: Freshly built.
        saved: By the names of the checkpoint.
        where: Its file, for messages.
        companion: What is put in place of ``.weight`` in the name of a tensor that lies beside a weight.

    Raises:
        StorageError: If tensors are missing, one would be lost, or a shape or dtype does not fit.
    """
    own = network.state_dict()
    best: tuple[int, Naming, Mapping[str, Tensor]] | None = None
    for tensors in _without_prefixes(saved):
        for naming in namings(network):
            lacking = len(_missing(network, own, naming, tensors))
            if best is None or lacking < best[0]:
                best = lacking, naming, tensors
    assert best is not None  # a checkpoint has tensors, and every network its own names
    _, naming, tensors = best
    beside = {
        ours: tensors[theirs.removesuffix(".weight") + companion]
        for ours, theirs in naming.theirs.items()
        if theirs.endswith(".weight") and theirs.removesuffix(".weight") + companion in tensors
    }
    used = set(naming.theirs.values())
    used |= {theirs.removesuffix(".weight") + companion for theirs in used if theirs.endswith(".weight")}
    dead = [name for name in tensors if name.startswith(naming.dead)] if naming.dead else []
    extra = [name for name in tensors if name not in used and name not in dead]
    missing = _missing(network, own, naming, tensors)
    if missing or extra:
        raise StorageError(_misfit(where, naming, missing, extra))
    taken: dict[str, Tensor] = {}
    for name, tensor in own.items():
        theirs = naming.theirs.get(name)
        there = theirs is not None and theirs in tensors
        taken[name] = _fitting(name, tensors[theirs], tensor, where) if there and theirs else tensor
    return Matched(
        naming=naming.name,
        tensors=taken,
        companions=beside,
        dropped=tuple(dead),
        kept_as_built=tuple(name for name in own if naming.theirs.get(name) not in tensors),
    )


def _without_prefixes(saved: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Yield ``saved`` without what wrappers put before all names, and then without what else all share."""
    tensors = dict(saved)
    while wrapper := next((w for w in _WRAPPERS if all(n.startswith(w) for n in tensors) and tensors), None):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    yield tensors
    tops = {name.partition(".")[0] for name in tensors}
    if len(tops) == 1 and all("." in name for name in tensors):
        yield {name.partition(".")[2]: tensor for name, tensor in tensors.items()}


def _missing(
    network: nn.Module, own: Mapping[str, Tensor], naming: Naming, tensors: Mapping[str, Tensor]
) -> list[str]:
    """Return their names of what the checkpoint lacks, but for what need not be there."""
    free = {"mean", "std"} if isinstance(network, Normalized) and "mean" not in naming.theirs else set[str]()
    wanted = [naming.theirs.get(name, name) for name in own if name not in free]
    return [name for name in wanted if name not in tensors and not name.endswith(_COUNTER)]


def _misfit(where: Path, naming: Naming, missing: list[str], extra: list[str]) -> str:
    advice = "Is it another network, or one with other settings?"
    if not missing:
        advice = (
            "They may change what the network computes, such as by normalising images. If they do not, leave "
            "them out: --drop GLOB (command line) or drop=[GLOB] (Python)."
        )
    return (
        f"{where}: is not a checkpoint of this network (by the names of {naming.name!r}, the nearest): "
        f"missing {shown(sorted(missing)[:6])} ({len(missing)} in all); "
        f"unexpected {shown(sorted(extra)[:6])} ({len(extra)} in all). {advice}"
    )


def _fitting(name: str, saved: Tensor, own: Tensor, where: Path) -> Tensor:
    """Return ``saved`` in the dtype of ``own``, if that loses nothing."""
    if saved.shape != own.shape:
        raise StorageError(
            f"{where}: {name} is {list(saved.shape)} there and {list(own.shape)} in the network. Give the "
            "network the checkpoint's settings, such as --set num_classes=100 (command line)."
        )
    converted = saved.to(own.dtype)
    if converted is not saved and not torch.equal(converted.to(saved.dtype), saved):
        raise StorageError(
            f"{where}: {name} is {saved.dtype} there and would be rounded to {own.dtype}. Convert it "
            "yourself if that does not matter."
        )
    return converted.contiguous()
