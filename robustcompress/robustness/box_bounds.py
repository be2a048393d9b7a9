"""Margins within the box of images around an image, by one bound or another, within a given memory.

Shapes: B batch, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcompress.robustness.bounds.crown import crown_ibp_margins, tightened
from robustcompress.robustness.bounds.interval import Propagation, interval_margins, propagate
from robustcompress.robustness.bounds.operations import Convolution
from robustcompress.robustness.bounds.tracing import TracedNetwork
from robustcompress.robustness.threat import Threat

_FUNCTIONS_AT_ONCE = 64
_COPIES = 6
"""Tensors of a pass back's widest size that live at the same time, at most: measured."""


@dataclass(frozen=True)
class Bound:
    """One way to bound margins from below.

    Attributes:
        name: As in the counts of a certificate.
        margins: From the intervals of a box, the classes int64 ``[batch]`` and how many linear functions may
            be pulled back at once, to lower bounds of ``f_y - f_j``, ``[batch, classes]``.
        from_inside: Whether it pulls back from entries inside the network, and not from the margins alone.
    """

    name: str
    margins: Callable[[Propagation, Tensor, int], Tensor]
    from_inside: bool = False


def _crown(boxed: Propagation, classes: Tensor, at_once: int) -> Tensor:
    smaller = tightened(boxed, at_once=at_once)
    return crown_ibp_margins(smaller, classes).maximum(interval_margins(smaller, classes))


INTERVAL = Bound("interval", lambda boxed, classes, at_once: interval_margins(boxed, classes))
CROWN_IBP = Bound("crown_ibp", lambda boxed, classes, at_once: crown_ibp_margins(boxed, classes))
CROWN = Bound("crown", _crown, from_inside=True)


class BoxBounds:
    """Bounds of one network, in chunks that the memory allows.

    Attributes:
        relaxed_entries: Numbers per image before rectifiers and max-pooling: CROWN passes back from each.
    """

    def __init__(
        self, network: TracedNetwork, image: Tensor, classes: int, *, dtype: torch.dtype, memory_mib: int
    ) -> None:
        """Look at the network once.

        Args:
            network: Whose margins are bounded.
            image: float ``[1, ...]``, any image of the data.
            classes: Of the network.
            dtype: In which the bounds are computed.
            memory_mib: About how much memory they may take besides the weights.
        """
        self._network = network
        self._dtype = dtype
        self._classes = classes
        self._available = memory_mib * 2**20 // dtype.itemsize
        point = image.to(dtype)
        sample = propagate(network, {}, point, point)
        relaxed = {source for step in sample.steps if not step.operation.affine for source in step.sources}
        self.relaxed_entries = sum(sample.intervals[source].centre[0].numel() for source in relaxed)
        self._held, self._widest = _entries(sample)

    def margins(self, bound: Bound, images: Tensor, classes: Tensor, radius: float) -> Tensor:
        """Return lower bounds of ``f_y - f_j`` within Linf ``radius``; ``[batch, classes]``, 0 at ``y``.

        Args:
            bound: How.
            images: float ``[batch, ...]`` in [0, 1], at least one.
            classes: Each image's ``y``, int64 ``[batch]``.
            radius: Pixel scale 0 to 1; the box ends at 0 and 1.
        """
        images_at_once, functions_at_once = self.at_once(bound)
        parts: list[Tensor] = []
        for few, own in zip(images.split(images_at_once), classes.split(images_at_once), strict=True):
            # The box's intervals are not bound to a name: they would live on while the next are computed.
            parts.append(
                bound.margins(propagate(self._network, {}, *self._box(few, radius)), own, functions_at_once)
            )
        return torch.cat(parts)

    def at_once(self, bound: Bound) -> tuple[int, int]:
        """Return how many images, and linear functions of each, the memory allows at once."""
        functions = self._classes
        if bound.from_inside:
            per_function = _COPIES * self._widest
            fit = max(1, (self._available - self._held) // per_function)
            functions = max(functions, min(_FUNCTIONS_AT_ONCE, fit))
        return max(1, self._available // (self._held + _COPIES * functions * self._widest)), functions

    def _box(self, images: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        threat = Threat(eps=radius)
        (low, high), (rounded_low, rounded_high) = threat.box(images.to(self._dtype)), threat.box(images)
        return low.minimum(rounded_low.to(self._dtype)), high.maximum(rounded_high.to(self._dtype))


def _entries(sample: Propagation) -> tuple[int, int]:
    """Return numbers per image: what is held of all intervals, and the widest of them."""
    sizes = [interval.centre[0].numel() for interval in sample.intervals]
    buffers = [0]
    for step, interval in zip(sample.steps, sample.intervals[1:], strict=True):
        if isinstance(step.operation, Convolution):
            # In float64 a convolution is a product of matrices, for which each window is copied.
            weight, places = step.operation.weight, interval.centre[0, 0].numel()
            buffers.append(weight[0].numel() * step.operation.groups * places)
    # Centre and radius of each, and again where they are made smaller.
    return 4 * sum(sizes) + 2 * max(buffers), max(sizes)
