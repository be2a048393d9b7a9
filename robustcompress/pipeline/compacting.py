"""Turn masks into what a device can use: dead channels gone, and weights that are really zero."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustcompress.errors import CompactionError, ModelError, StorageError
from robustcompress.pipeline.constraint_checks import check_network
from robustcompress.pipeline.context import Context
from robustcompress.pruning.compaction import compact as remove_channels
from robustcompress.pruning.copies import private_copy
from robustcompress.pruning.patterns import PRUNABLE
from robustcompress.storage.artifact import Artifact
from robustcompress.storage.rebuild import load_into


def compact(context: Context, before: Artifact) -> Artifact:
    """Fold the masks into the weights and remove the channels that are dead then.

    A mask of whole channels is removed or the stage fails. Channels that a mask of single weights happens to
    leave dead are removed where that is possible; else the network keeps its shapes, and a warning says why.
    Weights in blocks or of N:M keep theirs: the layout is what the device wants.

    Raises:
        CompactionError: If the network without masked channels would compute something else.
        ModelError: If it cannot be traced.
        ConfigError: If it misses a constraint on its weights or multiply-adds.
    """
    context.load_weights(before)
    dense = {name: tensor.detach().clone() for name, tensor in context.model.named_parameters()}
    smaller = _Smaller(context.model)
    if before.extra_tensors:
        masking = context.masking()
        masking.restore(before.extra_tensors)
        masking.bake(context.model)
        smaller = _without_dead_channels(context)
    constraints = check_network(context, smaller.network) if before.extra_tensors else {}
    metrics = {
        "removed_channels": dict(smaller.removed),
        "folded_constants": dict(smaller.folded),
        "carried_constants": dict(smaller.carried),
        "metrics_of": before.stage,
        "constraints": constraints,
    }
    network = smaller.network
    return context.artifact("compact", network, metrics=metrics, sparsity=weight_counts(network, dense))


@dataclass(frozen=True, eq=False)
class _Smaller:
    """A network, and by layer what was removed and where the constants of it went."""

    network: nn.Module
    removed: Mapping[str, int] = field(default_factory=dict[str, int])
    folded: Mapping[str, int] = field(default_factory=dict[str, int])
    carried: Mapping[str, int] = field(default_factory=dict[str, int])


def _without_dead_channels(context: Context) -> _Smaller:
    pattern, recipe = context.recipe.pattern, context.recipe
    single_weights = pattern.units_are_weights and pattern.fixed_sparsity is None
    if not pattern.removes_structure and not single_weights:
        return _Smaller(context.model)
    try:
        found = remove_channels(
            context.model,
            context.example_inputs,
            ignore=recipe.ignore,
            round_to=pattern.round_widths_to,
        )
        if not pattern.removes_structure:
            if not any(found.removed.values()):
                return _Smaller(context.model)
            load_into(private_copy(context.model), found.network.state_dict())
    except (ModelError, CompactionError, StorageError) as error:
        if pattern.removes_structure:
            raise
        context.warn(f"channels that the mask left dead are not removed; the weights stay sparse: {error}")
        return _Smaller(context.model)
    return _Smaller(found.network, found.removed, found.folded, found.carried)


@torch.no_grad()
def weight_counts(network: nn.Module, dense: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Return for each prunable layer its weights in the dense network and those not zero now."""
    counts: dict[str, dict[str, int]] = {}
    for name, module in network.named_modules():
        parameter = f"{name}.weight" if name else "weight"
        if isinstance(module, PRUNABLE) and parameter in dense:
            kept = int(torch.count_nonzero(module.weight))
            counts[name] = {"size": dense[parameter].numel(), "kept": kept}
    return counts
