"""Whole numbers of kept units that add up: what budgets want, within what each site allows."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from robustcompress.pruning.patterns import Site

_HALVINGS = 100
_NEARBY = 3  # allowed counts looked at on either side of what is wanted


def least_kept(site: Site) -> int:
    """Return the smallest count that ``site`` may keep: its minimum, rounded up to its granularity."""
    steps = -(-site.minimum_kept // site.granularity)
    return min(site.units, steps * site.granularity)


def nearest_kept(wanted: float, site: Site) -> int:
    """Return the count nearest to ``wanted`` that ``site`` may keep; of two equally near the smaller."""
    below = max(least_kept(site), _below(wanted, site))
    above = min(site.units, below + site.granularity)
    return below if wanted - below <= above - wanted else above


def next_kept(kept: int, site: Site) -> int:
    """Return the next larger count that ``site`` may keep; the same one if it keeps all."""
    return min(site.units, kept // site.granularity * site.granularity + site.granularity)


def fit_kept(wanted: Sequence[float], sites: Sequence[Site], total: int) -> list[int]:
    """Return how many units each site keeps, as near to ``wanted`` as adding up to ``total`` allows.

    What a site cannot take (it keeps its minimum, and never more than all) the others take in proportion.
    Then counts are rounded to each site's granularity, a full site always being allowed. Where no such
    counts add up to ``total``, their sum is as near to it as counts close to the wanted ones come.

    Args:
        wanted: Units to keep in each site, 0 or more; need not be whole.
        sites: As many.
        total: Units that all sites together should keep.
    """
    least = np.array([least_kept(site) for site in sites], float)
    most = np.array([site.units for site in sites], float)
    fitted = _scaled(np.array(wanted, float), least, most, float(total))
    if all(site.granularity == 1 for site in sites):
        return _largest_remainders(fitted, least, most, total)
    return _nearest_sum(fitted, sites, total)


def _below(wanted: float, site: Site) -> int:
    """Return the largest allowed count that does not exceed ``wanted``, ignoring the minimum."""
    # What lies a rounding error of the scaling below a count means that count.
    if wanted >= site.units - 1e-6:
        return site.units
    return int(wanted + 1e-6) // site.granularity * site.granularity


def _scaled(
    wanted: npt.NDArray[np.float64],
    least: npt.NDArray[np.float64],
    most: npt.NDArray[np.float64],
    total: float,
) -> npt.NDArray[np.float64]:
    """Return ``clip(factor * wanted, least, most)`` with the factor at which it adds up to ``total``."""
    inside = np.clip(wanted, least, most)
    if abs(float(inside.sum()) - total) < 1e-6:
        return inside
    # A site that wants nothing could not grow by a factor.
    wanted = np.maximum(wanted, 1e-9)
    low, high = 0.0, float((most / wanted).max())
    for _ in range(_HALVINGS):
        factor = (low + high) / 2
        if float(np.clip(factor * wanted, least, most).sum()) < total:
            low = factor
        else:
            high = factor
    found: npt.NDArray[np.float64] = np.clip(high * wanted, least, most)
    return found


def _largest_remainders(
    wanted: npt.NDArray[np.float64],
    least: npt.NDArray[np.float64],
    most: npt.NDArray[np.float64],
    total: int,
) -> list[int]:
    """Return whole numbers that add up: those with the largest fractions are rounded up."""
    kept = np.floor(wanted + 1e-6)
    missing = total - int(kept.sum())
    order = np.argsort(kept - wanted, kind="stable")
    while missing > 0 and bool((kept < most).any()):
        for index in order[:]:
            if missing > 0 and kept[index] < most[index]:
                kept[index] += 1
                missing -= 1
    while missing < 0 and bool((kept > least).any()):
        for index in order[::-1]:
            if missing < 0 and kept[index] > least[index]:
                kept[index] -= 1
                missing += 1
    return [int(count) for count in kept]


def _nearest_sum(wanted: npt.NDArray[np.float64], sites: Sequence[Site], total: int) -> list[int]:
    """Return allowed counts near ``wanted`` whose sum is nearest to ``total``, and of those the nearest.

    Goes through the sites one by one and remembers, for every sum that can be reached, the counts that
    differ least. Sums that stray far from what the sites so far want are forgotten.
    """
    window = 2 * max(site.granularity for site in sites) * (_NEARBY + 1)
    reached: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    so_far = 0.0
    for target, site in zip(wanted.tolist(), sites, strict=True):
        so_far += target
        best: dict[int, tuple[float, tuple[int, ...]]] = {}
        for count in _choices(target, site):
            change = (count - target) ** 2
            for sum_before, (before, counts) in reached.items():
                found = sum_before + count
                if abs(found - so_far) > window:
                    continue
                if found not in best or before + change < best[found][0]:
                    best[found] = (before + change, (*counts, count))
        reached = best
    nearest = min(reached, key=lambda found: (abs(found - total), reached[found][0]))
    return list(reached[nearest][1])


def _choices(wanted: float, site: Site) -> list[int]:
    """Return the allowed counts around ``wanted``."""
    least, step = least_kept(site), site.granularity
    middle = _below(wanted, site) // step * step
    around = (middle + number * step for number in range(-_NEARBY, _NEARBY + 2))
    found = {count for count in around if least <= count <= site.units}
    if site.units - wanted <= (_NEARBY + 1) * step or not found:
        found.add(site.units)
    return sorted(found)
