"""The proof that a network without its dead channels computes what it did: on many images, in float64."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcompress.errors import CompactionError, ModelError
from robustcompress.pruning.copies import double_copy, run
from robustcompress.pruning.equality import first_difference, relative_difference

_CHECKED_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Probe:
    """Images for the proof; ``optional`` ones are skipped if the network does not take them."""

    images: Tensor
    optional: bool


@dataclass(frozen=True, eq=False)
class Proof:
    """What was compared.

    Attributes:
        difference: Largest difference of the logits, relative to the largest logit.
        checked: Shapes of the images.
    """

    difference: float
    checked: tuple[tuple[int, ...], ...]


def probes(example_inputs: Tensor, check_inputs: Tensor | None, seed: int) -> list[Probe]:
    """Return real images, random ones of the same shape, and random ones of other heights and widths."""
    generator = torch.Generator().manual_seed(seed)
    front, sides = (len(example_inputs[:2]), *example_inputs.shape[1:2]), tuple(example_inputs.shape[2:])
    sizes = [sides]
    if sides:
        # Half of it, and an odd one whose height and width differ.
        sizes.append(tuple(max(1, side // 2) for side in sides))
        sizes.append(tuple(side + 3 + axis for axis, side in enumerate(sides)))
    found = [Probe(example_inputs, optional=False)]
    if check_inputs is not None:
        found.append(Probe(check_inputs, optional=False))
    for index, size in enumerate(sizes):
        images = torch.rand((*front, *size), generator=generator, dtype=torch.float64)
        found.append(Probe(images, optional=index > 0))
    return found


@torch.no_grad()
def prove(
    masked: nn.Module,
    small: nn.Module,
    images: Sequence[Probe],
    *,
    tolerance: float,
    kept: Mapping[str, Tensor],
    shifted: Collection[str] = (),
) -> Proof:
    """Return how far the logits of two networks are apart, at most ``tolerance`` of the largest one.

    Args:
        masked: The network before channels were removed; runs in float64.
        small: The network after.
        images: Moved to the networks' device.
        tolerance: Largest difference allowed.
        kept: For each layer that lost output channels, the int64 indices of those it kept.
        shifted: Layers whose outputs may differ, because the next layer makes up for it.

    Raises:
        CompactionError: If they are further apart, or the masked network gives NaN or infinity.
        ModelError: If the masked network does not run.
    """
    masked, small = double_copy(masked), double_copy(small)
    largest = 0.0
    checked: list[tuple[int, ...]] = []
    for probe in images:
        for part in probe.images.to(torch.float64).split(_CHECKED_AT_ONCE):
            expected = _expected(masked, part, probe.optional)
            if expected is None:
                continue
            try:
                difference = relative_difference(expected, run(small, part))
            except ModelError:
                difference = float("inf")
            if difference > tolerance:
                found = first_difference(masked, small, part, kept, tolerance=tolerance, skip=shifted)
                where = (
                    "no single layer"
                    if found is None
                    else f"layer {found.layer or type(masked).__name__!r} {found.reason}"
                )
                raise CompactionError(
                    f"masked and compact network must agree to {tolerance:.0e} of the largest logit; they "
                    f"differ by {difference:.2g} on images of shape {list(part.shape)}: {where}. Nothing "
                    "was changed: keep the masked network, or name the layer in ignore."
                )
            largest = max(largest, difference)
            checked.append(tuple(part.shape))
    return Proof(largest, tuple(checked))


def _expected(masked: nn.Module, images: Tensor, optional: bool) -> Tensor | None:
    """Return the masked network's logits; None if it does not take these images and need not."""
    try:
        logits = run(masked, images)
    except ModelError:
        if optional:
            return None
        raise
    if bool(logits.isfinite().all()):
        return logits
    if optional:
        return None
    raise CompactionError(
        "the masked network must give finite logits; it gives NaN or infinity for images of shape "
        f"{list(images.shape)}. Compact a network that works."
    )
