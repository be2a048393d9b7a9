"""Which classes an attack may reach at all: bounds first, since what is proven need not be attacked.

Shapes: B batch, C classes.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.robustness.bounds.tracing import trace_network
from robustcompress.robustness.box_bounds import CROWN_IBP, INTERVAL, Bound, BoxBounds
from robustcompress.robustness.threat import Threat

Reachable: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Images ``[batch, ...]`` and their right classes ``[batch]`` to bool ``[batch, classes]``."""

_SLACK = 1e-4
"""How far above zero a margin must lie, in units of the largest logit, for the network's own rounding."""
_LOOKED_AT_FIRST = 8
_MEMORY_MIB = 1024


@torch.no_grad()
def class_excluder(network: nn.Module, images: Tensor, threat: Threat) -> Reachable | None:
    """Return what tells which classes no image of ``threat`` can get; ``None`` if bounds tell nothing here.

    Interval bounds are asked first, then CROWN-IBP about the images that they left open; CROWN would prove
    more, and take longer than to attack what it proves. An L2 ball is taken for the box around it. On a
    network that was not trained for them bounds are void, and are given up after a look at a few images.

    What is excluded is excluded in exact arithmetic, up to the rounding of float64, with room for the
    network's own rounding.

    Args:
        network: In eval mode, on the images' device.
        images: Some images of the data, float ``[batch, ...]``, to find out whether bounds tell anything.
        threat: Norm and radius.
    """
    if (threat.lower, threat.upper) != (0.0, 1.0) or threat.eps == 0 or len(images) == 0:
        return None
    few = images[:_LOOKED_AT_FIRST]
    try:
        logits_BC = network(few)
        boxes = BoxBounds(
            trace_network(network),
            few[:1],
            logits_BC.shape[1],
            dtype=torch.float64,
            memory_mib=_MEMORY_MIB,
        )
        excluder = _Excluder(network, boxes, threat.eps)
        useful = bool(excluder.excluded(CROWN_IBP, few, logits_BC.argmax(1)).any())
    except ModelError:
        return None
    return excluder.reachable if useful else None


class _Excluder:
    def __init__(self, network: nn.Module, boxes: BoxBounds, eps: float) -> None:
        self._network = network
        self._boxes = boxes
        self._eps = eps

    @torch.no_grad()
    def reachable(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return which wrong classes may be reached; all false where the right one is proven."""
        excluded_BC = self.excluded(INTERVAL, images, labels)
        # The right class itself is never excluded.
        rows = ((~excluded_BC).sum(1) > 1).nonzero().flatten()
        if len(rows):
            excluded_BC[rows] |= self.excluded(CROWN_IBP, images[rows], labels[rows])
        return (~excluded_BC).scatter(1, labels[:, None], False)

    def excluded(self, bound: Bound, images: Tensor, labels: Tensor) -> Tensor:
        """Return which classes ``bound`` excludes."""
        margins_BC = self._boxes.margins(bound, images, labels, self._eps)
        logits_BC: Tensor = self._network(images)
        return margins_BC > _SLACK * logits_BC.abs().amax(1, keepdim=True).clamp_min(1)
