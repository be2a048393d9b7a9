"""How many images are certified, fast: to choose between epochs, not to publish."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustcompress.robustness.batches import Batches, checked_batches
from robustcompress.robustness.bounds.crown import crown_ibp_margins
from robustcompress.robustness.bounds.interval import interval_margins, propagate
from robustcompress.robustness.bounds.tracing import TracedNetwork, trace_network
from robustcompress.robustness.threat import Threat

_AT_ONCE = 64


def certified_counts(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    batches: Batches,
    *,
    threat: Threat,
    device: torch.device | str,
    limit: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> tuple[int, int, int]:
    """Return how many images are right clean, how many are certified right, and how many there are.

    Interval bounds first, CROWN-IBP for the images that they leave open; both in the images' type. Around an
    L2 threat the Linf box of the same radius is certified, in which the ball lies.

    Args:
        model: Judged in eval mode.
        tensors: Parameters or buffers in place of its own, such as masked weights.
        batches: Images float ``[batch, ...]`` in [0, 1] and labels int64 ``[batch]``; read once.
        threat: What images may become.
        device: Where the network and ``tensors`` are.
        limit: Judge the first ``limit`` images only.
        share: (i, n) judges the i-th of every n batches.

    Raises:
        ConfigError: If ``limit`` is not positive.
        DataError: If there are no batches, or one is not what it must be.
        ModelError: If an operation of the network has no bounds.
    """
    traced = trace_network(model)
    clean, certified, count = 0, 0, 0
    for batch in checked_batches(batches, device=device, limit=limit):
        if batch.index % share[1] != share[0]:
            continue
        count += len(batch.labels)
        for images, labels in zip(batch.images.split(_AT_ONCE), batch.labels.split(_AT_ONCE), strict=True):
            logits = propagate(traced, tensors, images, images).logits.centre
            right = logits.argmax(1) == labels
            clean += int(right.sum())
            certified += _certified(traced, tensors, images[right], labels[right], threat)
    return clean, certified, count


def _certified(
    traced: TracedNetwork, tensors: Mapping[str, Tensor], images: Tensor, labels: Tensor, threat: Threat
) -> int:
    if len(images) == 0:
        return 0
    boxed = propagate(traced, tensors, *threat.box(images))
    open_ = ~_above_zero(interval_margins(boxed, labels), labels)
    proven = len(images) - int(open_.sum())
    if bool(open_.any()):
        boxed = propagate(traced, tensors, *threat.box(images[open_]))
        proven += int(_above_zero(crown_ibp_margins(boxed, labels[open_]), labels[open_]).sum())
    return proven


def _above_zero(margins_BC: Tensor, labels: Tensor) -> Tensor:
    """Return which images have every margin but the label's own above zero."""
    return margins_BC.scatter(1, labels[:, None], 1.0).gt(0).all(1)
