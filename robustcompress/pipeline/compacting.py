"""Turn masks into what a device can use: channels gone, or weights that are really zero."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustcompress.pipeline.context import Context
from robustcompress.pruning.compaction import compact as remove_channels
from robustcompress.pruning.patterns import PRUNABLE
from robustcompress.storage.artifact import Artifact


def compact(context: Context, before: Artifact) -> Artifact:
    """Fold the masks into the weights and, for patterns of whole channels, remove what they masked.

    Raises:
        CompactionError: If the smaller network would compute something else.
    """
    context.load_weights(before)
    dense = {name: tensor.detach().clone() for name, tensor in context.model.named_parameters()}
    if before.extra_tensors:
        masking = context.masking()
        masking.restore(before.extra_tensors)
        masking.bake(context.model)
    network: nn.Module = context.model
    removed: Mapping[str, int] = {}
    if context.recipe.pattern.removes_structure and before.extra_tensors:
        compacted = remove_channels(context.model, context.example_inputs)
        network, removed = compacted.network, compacted.removed
    metrics = {"removed_channels": dict(removed), "metrics_of": before.stage}
    return context.artifact("compact", network, metrics=metrics, sparsity=weight_counts(network, dense))


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
