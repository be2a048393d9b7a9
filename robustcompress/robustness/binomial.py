"""How small a probability may be, given how often its event was seen."""

import math
from functools import lru_cache

from robustcompress.errors import ConfigError

_HALVINGS = 60


@lru_cache(maxsize=4096)
def lower_bound(hits: int, draws: int, *, alpha: float) -> float:
    """Return the Clopper-Pearson lower confidence bound of a probability, one-sided.

    It is the p at which as many ``hits`` or more have probability ``alpha``. Whatever the true probability
    is, the bound exceeds it with probability ``alpha`` at most. What rounding leaves open is decided
    downwards: the bound returned is never above the exact one.

    Args:
        hits: How often the event was seen, 0 to ``draws``.
        draws: Independent trials, 1 or more.
        alpha: Probability that the bound is wrong, in (0, 1/2).

    Returns:
        The bound, 0.0 where there are no hits.

    Raises:
        ConfigError: If an argument is out of range.

    Source:
        Clopper & Pearson 1934, https://doi.org/10.2307/2331986.
    """
    if draws < 1 or not 0 <= hits <= draws:
        raise ConfigError(f"hits must be 0 to draws, of 1 or more draws; got {hits} hits of {draws} draws.")
    if not 0 < alpha < 0.5:
        raise ConfigError(f"alpha must be in (0, 0.5); got {alpha}. 0.001 is wrong once in a thousand times.")
    # Logarithms of factorials are of the order of draws * log(draws); their rounding is a relative error of
    # the tail. Asking for a smaller tail by as much keeps the bound on the safe side.
    target = alpha * (1 - 2**-46 * draws * math.log(draws + 2))
    # At p = hits / draws the tail is one half or more (the mean is the median), so the bound lies below.
    low, high = 0.0, hits / draws
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if upper_tail(hits, draws, middle) <= target:
            low = middle
        else:
            high = middle
    return low


def upper_tail(hits: int, draws: int, probability: float) -> float:
    """Return the probability of ``hits`` or more, for ``probability`` below ``hits / draws``.

    Terms of the sum then fall from the first on, at least geometrically in the end.

    Args:
        hits: 0 to ``draws``.
        draws: Independent trials.
        probability: Of a hit in one trial, in [0, 1).
    """
    if hits == 0:
        return 1.0
    if probability == 0.0:
        return 0.0
    odds = probability / (1 - probability)
    first = (
        math.lgamma(draws + 1)
        - math.lgamma(hits + 1)
        - math.lgamma(draws - hits + 1)
        + hits * math.log(probability)
        + (draws - hits) * math.log1p(-probability)
    )
    total = term = 1.0
    for count in range(hits, draws):
        term *= (draws - count) / (count + 1) * odds
        total += term
        if term < 1e-17 * total:
            break
    return math.exp(first) * total
