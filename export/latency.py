"""How long files take for one image, measured side by side."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcompress.errors import ConfigError
from robustcompress.export.session import OnnxSession

_WARM_UP = 3
_LEAST_ROUNDS = 10


@dataclass(frozen=True)
class Latency:
    """Wall time of one call with one image.

    Attributes:
        median_ms: Milliseconds; half of the calls took less.
        low_ms: A quarter of the calls took less.
        high_ms: A quarter of the calls took more.
        calls: How many were measured.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    calls: int


def measure_latencies(
    sessions: Sequence[OnnxSession], images: Sequence[Tensor], *, seconds: float = 2.0
) -> list[Latency]:
    """Time every session in turn, round after round, so that what disturbs one disturbs all.

    Args:
        sessions: Each with the threads on which it is to be timed.
        images: What each is given, float ``[batch, ...]``.
        seconds: To spend on each session, about; ten rounds at the least.

    Raises:
        ConfigError: If there is not one batch of images for each session.
    """
    if len(sessions) != len(images):
        raise ConfigError(f"expected images for {len(sessions)} sessions; got {len(images)}.")
    for _ in range(_WARM_UP):
        for session, batch in zip(sessions, images, strict=True):
            session(batch)
    taken: list[list[float]] = [[] for _ in sessions]
    began = time.perf_counter()
    while sessions and (
        len(taken[0]) < _LEAST_ROUNDS or time.perf_counter() - began < seconds * len(sessions)
    ):
        for session, batch, times in zip(sessions, images, taken, strict=True):
            start = time.perf_counter()
            session(batch)
            times.append(1000 * (time.perf_counter() - start))
    return [_summary(times) for times in taken]


def one_image(session: OnnxSession) -> Tensor | None:
    """Return a grey image of the size that a session takes; ``None`` if it takes any size."""
    batch, *sizes = session.input_shape
    if any(size is None for size in sizes):
        return None
    return torch.full((batch or 1, *(size for size in sizes if size is not None)), 0.5)


def _summary(times: Sequence[float]) -> Latency:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, low, high, len(times))
