"""What others call the tensors of the networks that the zoo has too."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from robustcompress.zoo.normalized import Normalized
from robustcompress.zoo.residual import ResidualNetwork
from robustcompress.zoo.wide_residual import WideResidualNetwork


@dataclass(frozen=True)
class Naming:
    """Other names for the tensors of one network.

    Attributes:
        name: Whose names they are.
        theirs: Their name by ours, for every tensor that they have.
        dead: Beginnings of names of tensors that their network holds but does not compute with.
    """

    name: str
    theirs: dict[str, str]
    dead: tuple[str, ...] = ()


def namings(network: nn.Module) -> list[Naming]:
    """Return the ways in which ``network``'s tensors may be called, its own first.

    Inside :class:`Normalized` the names are also looked for without the wrapper, whose mean and standard
    deviation are then those that it was built with.
    """
    names = list(network.state_dict())
    found = [Naming("own", {name: name for name in names})]
    if isinstance(network, Normalized):
        for inner in namings(network.model):
            found.append(Naming(inner.name, {f"model.{k}": v for k, v in inner.theirs.items()}, inner.dead))
    for name, rename, dead in _dialects(network):
        found.append(Naming(name, {ours: rename(ours) for ours in names}, dead))
    return found


def _dialects(network: nn.Module) -> Iterator[tuple[str, Callable[[str], str], tuple[str, ...]]]:
    if isinstance(network, ResidualNetwork):
        stages = _stages(network.blocks, "layer{stage}.{index}")
        yield "hydra", _renamer({**stages, "classifier": "linear"}, {}), ()
        yield "torchvision", _renamer({**stages, "classifier": "fc"}, {"shortcut": "downsample"}), ()
    if isinstance(network, WideResidualNetwork):
        tops = {"conv": "conv1", "bn": "bn1", "classifier": "fc"}
        stages = _stages(network.blocks, "block{stage}.layer.{index}")
        # Their constructor makes a copy of the first stage, and their forward pass does not use it.
        yield "hydra", _renamer({**stages, **tops}, {"shortcut": "convShortcut"}), ("sub_block1.",)


def _stages(blocks: nn.Sequential, pattern: str) -> dict[str, str]:
    """Return the name of each block by ours; a stage begins where a convolution has a stride."""
    found: dict[str, str] = {}
    stage, index = 1, 0
    for number, block in enumerate(blocks):
        strides = [layer.stride for layer in block.modules() if isinstance(layer, nn.Conv2d)]
        if any(stride != (1, 1) for stride in strides):
            stage, index = stage + 1, 0
        found[f"blocks.{number}"] = pattern.format(stage=stage, index=index)
        index += 1
    return found


def _renamer(beginnings: dict[str, str], parts: dict[str, str]) -> Callable[[str], str]:
    def rename(ours: str) -> str:
        for begin, theirs in beginnings.items():
            if ours.startswith(f"{begin}."):
                ours = theirs + ours[len(begin) :]
                break
        return ".".join(parts.get(part, part) for part in ours.split("."))

    return rename
