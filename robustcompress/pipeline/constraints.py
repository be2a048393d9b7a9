"""The sparsity at which a recipe's constraints are met."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from robustcompress.errors import ConfigError
from robustcompress.export.cost_table import CostTable
from robustcompress.export.formats import Exported
from robustcompress.pipeline.constraint_checks import cost_table, slowest_ms
from robustcompress.pipeline.context import Context
from robustcompress.pipeline.exporting import claims
from robustcompress.pipeline.latency import latency_of
from robustcompress.pipeline.mixed_precision import at_largest
from robustcompress.pruning.compaction import compact as remove_channels
from robustcompress.pruning.constraints import Check, absolute, find_sparsity, missed
from robustcompress.pruning.costs import Limit, NetworkCosts, network_costs
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Site

TABLE = "latency_table.json"
"""Where a run saves the cost table that it measured."""

_FLOAT_BYTES = 4
_TRIALS = 6
_CLOSE = 0.97  # of the target: a file as near to it as that is not tried to be brought nearer
_RESERVE = 0.005  # of the bytes: learned positions cost a little more or less than those of the trial


def within_constraints(
    context: Context, masking: Masking, *, initial: Sequence[Tensor] | None = None
) -> Masking:
    """Return masks that meet the recipe's constraints, with the smallest sparsity that does.

    Weights and multiply-adds are exact functions of what is kept. Bytes and latency are estimated (by the
    entropy of positions plus values; by a table of layers' latencies); the estimate is corrected by really
    writing and timing the network of the first masks, until that meets the target.

    Args:
        context: Holds recipe and network.
        masking: Fresh; returned as it is if there are no constraints.
        initial: First scores, as ``masking`` was given.

    Raises:
        ConfigError: If no sparsity meets them; says how close the smallest network comes.
    """
    if not context.recipe.constraints:
        return masking
    found: tuple[float, tuple[Limit, ...]] = (0.0, ())
    if context.workers.is_main:
        found = _Search(context, masking, initial).run()
    sparsity, limits = context.workers.from_main(found)
    return context.masking(initial=initial, sparsity=sparsity, limits=limits)


@dataclass
class _Corrected:
    """An estimate that measurements correct: by a difference, or by a factor."""

    estimate: Callable[[Sequence[int]], float]
    by_factor: bool
    difference: float = 0.0
    factor: float = 1.0

    def __call__(self, kept: Sequence[int]) -> float:
        return self.estimate(kept) * self.factor + self.difference

    def correct(self, kept: Sequence[int], measured: float) -> None:
        """Make the estimate right for these counts."""
        if self.by_factor:
            self.factor = measured / self.estimate(kept)
        else:
            self.difference = measured - self.estimate(kept)


class _Search:
    """The search of one recipe's sparsity."""

    def __init__(self, context: Context, masking: Masking, initial: Sequence[Tensor] | None) -> None:
        self._context, self._initial = context, initial
        self._sites = masking.sites
        self._scores = [scores.detach() for scores in masking.scores]
        self._costs = network_costs(context.model, context.example_inputs, self._sites)
        self._wanted = context.recipe.constraints
        self._table: CostTable | None = None
        self._measured: dict[str, _Corrected] = {}

    def run(self) -> tuple[float, tuple[Limit, ...]]:
        """Return the sparsity, and the limits that a budget that learns must stay within."""
        checks = self._checks()
        units = sum(site.units for site in self._sites)
        best: float | None = None
        failures: list[str] = []
        for _ in range(_TRIALS):
            sparsity = find_sparsity(self._allocate, units, checks)
            trials = self._try(sparsity)
            if all(value <= target for value, target in trials.values()):
                best = sparsity if best is None else min(best, sparsity)
                near = any(value > _CLOSE * target for value, target in trials.values())
                if near or not trials or best == 0 or self._others_bind(checks, sparsity):
                    break
            else:
                failures = [missed(n, v, t, "the network") for n, (v, t) in trials.items() if v > t]
        if self._table is not None and self._table.is_of_this_device:
            self._table.write(self._context.run_dir / TABLE)
        if best is None:
            raise ConfigError(f"after {_TRIALS} trials " + "; ".join(failures))
        return best, self._limits(self._allocate(best))

    def _allocate(self, sparsity: float) -> list[int]:
        removed = self._context.recipe.budget.counts(self._sites, self._scores, sparsity)
        return [site.units - count for site, count in zip(self._sites, removed, strict=True)]

    def _checks(self) -> list[Check]:
        """Return a check for each constraint."""
        context, wanted, costs = self._context, self._wanted, self._costs
        structured = context.recipe.pattern.removes_structure
        only_channels = "" if structured else "Only removed channels lower it: use the pattern 'channel'."
        checks: list[Check] = []
        if (wanted.bytes is not None or wanted.latency_ms is not None) and not context.recipe.export:
            raise ConfigError("constraints on bytes or latency_ms are on exported files; export is empty.")
        if wanted.weights is not None:
            checks.append(Check("weights", costs.weights, absolute(wanted.weights, costs.weights.dense)))
        if wanted.macs is not None:
            target = absolute(wanted.macs, costs.macs.dense)
            checks.append(Check("macs", costs.macs, target, only_channels))
        if wanted.bytes is not None:
            self._measured["bytes"] = _Corrected(bytes_of(self._sites, costs, structured), by_factor=False)
            hint = "Relax the constraint, or export compact files." if structured else ""
            checks.append(Check("bytes", self._measured["bytes"], self._targets["bytes"], hint))
        if wanted.latency_ms is not None:
            self._table = cost_table(context)
            if not self._table.is_of_this_device:
                context.warn(
                    f"latency is that of {self._table.device}, from {wanted.latency_table}; the result is "
                    "not measured there."
                )
            latency = latency_of(context.model, context.example_inputs, costs.macs, self._table)
            self._measured["latency_ms"] = _Corrected(latency, by_factor=True)
            checks.append(
                Check("latency_ms", self._measured["latency_ms"], self._targets["latency_ms"], only_channels)
            )
        return checks

    @property
    def _targets(self) -> dict[str, float]:
        """Targets of what is measured: bytes with a reserve, latency without its tolerance."""
        found: dict[str, float] = {}
        if self._wanted.bytes is not None:
            found["bytes"] = math.floor((1 - _RESERVE) * self._wanted.bytes)
        if self._wanted.latency_ms is not None:
            found["latency_ms"] = self._wanted.latency_ms
        return found

    def _others_bind(self, checks: Sequence[Check], sparsity: float) -> bool:
        """Whether a constraint that is exact keeps the sparsity from being smaller."""
        units = sum(site.units for site in self._sites)
        less = self._allocate(max(0.0, sparsity - 1 / units))
        return any(not check.holds(less) for check in checks if check.name not in self._measured)

    def _try(self, sparsity: float) -> dict[str, tuple[float, float]]:
        """Write and time the network of the first masks; return value and target of what was measured.

        A latency on another device is not measured.
        """
        here = self._table is None or self._table.is_of_this_device
        measured = {name for name in self._measured if name != "latency_ms" or here}
        if not measured:
            return {}
        kept = self._allocate(sparsity)
        with TemporaryDirectory() as folder:
            files = self._trial_files(sparsity, Path(folder))
            found: dict[str, tuple[float, float]] = {}
            if "bytes" in measured:
                found["bytes"] = (max(file.size_bytes for file in files), self._targets["bytes"])
            if "latency_ms" in measured:
                latency = slowest_ms(self._context, files, wanted=self._targets["latency_ms"])
                found["latency_ms"] = (latency, self._targets["latency_ms"])
        for name, (value, _) in found.items():
            self._measured[name].correct(kept, value)
        return found

    def _trial_files(self, sparsity: float, folder: Path) -> list[Exported]:
        """Write the network of the first masks in every format of the recipe."""
        context = self._context
        network = copy.deepcopy(context.model)
        context.masking(initial=self._initial, sparsity=sparsity).bake(network)
        if context.recipe.pattern.removes_structure:
            network = remove_channels(network, context.example_inputs).network
        network = network.cpu().eval()
        claimed = claims(context.artifact("compact", network, metrics={}))
        images = context.example_inputs.detach().cpu()
        return [
            # Neither bytes nor latency depend on the ranges that calibration finds.
            at_largest(format).write(
                network,
                folder / f"trial{index}{format.suffix}",
                images=images,
                metadata=claimed,
                calibration=lambda: images,
            )
            for index, format in enumerate(context.recipe.export)
        ]

    def _limits(self, kept: Sequence[int]) -> tuple[Limit, ...]:
        """Return what learned rates must stay within: bytes follow weights, latency multiply-adds."""
        costs, wanted = self._costs, self._wanted
        limits: list[Limit] = []
        if wanted.weights is not None:
            limits.append(Limit(costs.weights, absolute(wanted.weights, costs.weights.dense)))
        if wanted.macs is not None:
            limits.append(Limit(costs.macs, absolute(wanted.macs, costs.macs.dense)))
        if wanted.bytes is not None:
            limits.append(Limit(costs.weights, costs.weights(kept)))
        if wanted.latency_ms is not None:
            limits.append(Limit(costs.macs, costs.macs(kept)))
        return tuple(limits)


def bytes_of(
    sites: Sequence[Site], costs: NetworkCosts, removes_structure: bool
) -> Callable[[Sequence[int]], float]:
    """Return the function from kept units to bytes: float32 values, and the entropy of their positions.

    Biases, graph and metadata are not counted; a measurement adds them.
    """

    def estimate(kept: Sequence[int]) -> float:
        values = _FLOAT_BYTES * costs.weights(kept)
        if removes_structure:
            return values
        return values + sum(
            site.units * _entropy(count / site.units) / 8 for site, count in zip(sites, kept, strict=True)
        )

    return estimate


def _entropy(density: float) -> float:
    """Return the bits of one position that is kept with this probability."""
    if density <= 0 or density >= 1:
        return 0.0
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density)
