"""Which channels anything reads: the rest is dead, whatever it holds."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from robustcompress.pruning.groups import ChannelGroup


@torch.no_grad()
def live_channels(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Return which channels of each group the logits may depend on; bool ``[channels]`` by the group's name.

    A channel is live if a filter that is live itself has a weight on it that is not zero. Filters of layers
    outside the groups are live. All others start as dead and come to life from the outputs backwards, so
    that channels of a residual stream that read only each other stay dead.

    Args:
        model: Its weights are looked at, nothing else.
        groups: Of ``model``.

    Source:
        Liveness as compilers compute it (Kildall 1973, https://doi.org/10.1145/512927.512945), over channels.
    """
    reads = {
        place.layer: _reads(model.get_submodule(place.layer)) for group in groups for place in group.consumers
    }
    live = {group.name: torch.zeros(group.channels, dtype=torch.bool) for group in groups}
    filters = {layer: torch.ones(len(columns), dtype=torch.bool) for layer, columns in reads.items()}
    grown = True
    while grown:
        _wake(filters, groups, live)
        grown = False
        for group in groups:
            known = live[group.name]
            read = known.clone()
            for place in group.consumers:
                columns = reads[place.layer][filters[place.layer]].any(0)
                read |= columns[place.positions].any(1)
            grown |= not torch.equal(read, known)
            live[group.name] = read
    return live


def _reads(layer: nn.Module) -> Tensor:
    """Return which filter has a weight on which input; bool ``[filters, inputs of a group]``."""
    weight = layer.get_parameter("weight")
    return (weight != 0).reshape(*weight.shape[:2], -1).any(2).cpu()


def _wake(filters: Mapping[str, Tensor], groups: Sequence[ChannelGroup], live: Mapping[str, Tensor]) -> None:
    """Say of the filters of all readers whether what they put out is live."""
    for group in groups:
        for place in group.producers:
            if place.layer in filters:
                filters[place.layer][place.positions] = live[group.name][:, None]
