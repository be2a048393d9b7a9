"""Choose for each layer in how few bits its weights are stored, by the robust accuracy that it costs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcompress.events import Progress
from robustcompress.export.formats import Format
from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.rounding import layer_kinds, round_values
from robustcompress.export.values import ValueType
from robustcompress.graph.folding import fold_batchnorm
from robustcompress.pipeline.context import Context
from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.evaluation import robust_counts
from robustcompress.robustness.predictor import as_predictor
from robustcompress.seeding import derive_seed

IMAGES = 512
"""Held-out images that each choice is judged on, at most."""
_STEPS = 10
_FEWEST_FIRST: tuple[ValueType, ...] = ("int4", "int6", "int8")


@dataclass(frozen=True)
class Mixed:
    """How each layer's weights are to be stored.

    Attributes:
        values: By layer name.
        before: Images that withstood the attack with every weight in float32.
        after: Images that withstand it with these.
        count: Of images.
        tried: Networks that were attacked for it.
    """

    values: dict[str, ValueType]
    before: int
    after: int
    count: int
    tried: int


def chosen_values(format: Format, context: Context, network: nn.Module, images: Tensor) -> tuple[Format, str]:
    """Return ``format`` with values for each layer, where it leaves them to the run, and what was measured.

    Args:
        format: Any; only ``onnx`` with values ``mixed`` is changed.
        context: Of the run: its held-out images and threat.
        network: What is exported.
        images: float32 ``[batch, ...]``, to fold batch normalisation with.

    Returns:
        The format, and a sentence for its details; empty where nothing was chosen.
    """
    if not isinstance(format, Onnx) or format.values != "mixed":
        return format, ""
    folded = fold_batchnorm(network, images).network
    attack, seed = Pgd(steps=_STEPS), derive_seed(context.recipe.seed, "mixed precision")
    total = 1 + len(_FEWEST_FIRST) * (1 + len(layer_kinds(folded, {})))
    done = 0

    def judge(candidate: nn.Module) -> tuple[int, int]:
        nonlocal done
        with as_predictor(candidate, context.device) as predictor:
            _, robust, count = robust_counts(
                predictor,
                context.validation,
                threat=context.recipe.threat,
                attack=attack,
                seed=seed,
                device=context.device,
                limit=IMAGES,
            )
        done += 1
        context.events(Progress("export", "mixed precision", done, total, f"{robust} of {count} stand"))
        return robust, count

    found = mixed_values(folded, judge, largest_drop=format.largest_drop)
    text = f"{found.before} to {found.after} of {found.count} held-out images withstand PGD-{_STEPS}"
    return format.model_copy(update={"values": found.values}), text


def at_largest(format: Format) -> Format:
    """Return ``format`` as it is largest: with float32 where values are yet to be chosen."""
    if isinstance(format, Onnx) and format.values == "mixed":
        return format.model_copy(update={"values": "float32"})
    return format


def mixed_values(
    network: nn.Module, judge: Callable[[nn.Module], tuple[int, int]], *, largest_drop: float
) -> Mixed:
    """Return the fewest bits for each layer that keep robust accuracy within ``largest_drop``.

    All layers get the fewest bits that all can have together. Then each in turn, the one with most weights
    first, gets fewer if the whole network, measured anew, stays within the drop. Greedy: another order may
    end smaller.

    Args:
        network: On the CPU, float32, batch normalisation folded.
        judge: Returns how many images a network gets right under attack, and of how many.
        largest_drop: Of robust accuracy in all, 0 to 1.
    """
    before, count = judge(network)
    least = before - largest_drop * count
    tried = 1
    after = before

    def within(values: dict[str, ValueType]) -> bool:
        nonlocal tried, after
        tried += 1
        robust, _ = judge(round_values(network, values).network)
        if robust >= least:
            after = robust
            return True
        return False

    layers = layer_kinds(network, {})
    values = layers
    common: ValueType = "float32"
    for kind in _FEWEST_FIRST:
        everywhere = layer_kinds(network, {"*": kind})
        if within(everywhere):
            values, common = everywhere, kind
            break
    for name in sorted(layers, key=lambda layer: -_weights(network, layer)):
        for kind in _fewer(common):
            if within({**values, name: kind}):
                values[name] = kind
                break
    return Mixed(values, before, after, count, tried)


def _fewer(kind: ValueType) -> Iterator[ValueType]:
    """Yield the kinds of fewer bits, fewest first."""
    for fewer in _FEWEST_FIRST:
        if fewer == kind:
            return
        yield fewer


def _weights(network: nn.Module, layer: str) -> int:
    weight = network.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    return int(torch.count_nonzero(weight))
