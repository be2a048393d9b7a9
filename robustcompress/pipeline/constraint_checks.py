"""Proof that what came out meets the recipe's constraints."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from robustcompress.errors import ConfigError
from robustcompress.export.cost_table import CostTable
from robustcompress.export.formats import Exported
from robustcompress.export.latency import measure_latencies
from robustcompress.export.session import OnnxSession
from robustcompress.graph.cost import count_macs
from robustcompress.pipeline.context import Context
from robustcompress.pruning.constraints import absolute, missed
from robustcompress.pruning.costs import network_costs
from robustcompress.pruning.patterns import PRUNABLE

_ROUNDS, _MOST_ROUNDS, _SECONDS = 3, 30, 0.3


def cost_table(context: Context) -> CostTable:
    """Return the table that the recipe names, or an empty one of this device.

    Raises:
        StorageError: If the file is no table.
    """
    wanted = context.recipe.constraints
    if wanted.latency_table is None:
        return CostTable.of_this_device(wanted.latency_threads)
    return CostTable.read(wanted.latency_table)


def slowest_ms(context: Context, files: Sequence[Exported], *, wanted: float = 0.0) -> float:
    """Return the median milliseconds of the slowest ONNX file with one image.

    All files are timed in turn, in several rounds; of each file's medians the smallest counts, since what
    disturbs a timing makes it longer. While that is longer than wanted, more rounds follow, so that
    another program's load for some seconds does not decide.

    Args:
        context: Holds an image, and the threads.
        files: Those of them that are ONNX are timed.
        wanted: Milliseconds; once all files are as fast as that, no more rounds are needed.

    Raises:
        ConfigError: If there is no ONNX file.
    """
    threads = context.recipe.constraints.latency_threads
    sessions = [OnnxSession(file.path, threads=threads) for file in files if file.path.suffix == ".onnx"]
    if not sessions:
        raise ConfigError("a constraint on latency_ms needs an ONNX file; add onnx to the recipe's export.")
    image = context.example_inputs[:1].detach().cpu().float()
    best = [math.inf] * len(sessions)
    for number in range(_MOST_ROUNDS):
        if number >= _ROUNDS and max(best) <= wanted:
            break
        found = measure_latencies(sessions, [image] * len(sessions), seconds=_SECONDS)
        best = [min(before, latency.median_ms) for before, latency in zip(best, found, strict=True)]
    return max(best)


def check_network(context: Context, network: nn.Module) -> dict[str, dict[str, float]]:
    """Check the compacted network; return target and value of each constraint on its weights and MACs.

    Args:
        context: Its model is the dense network, whatever its weights.
        network: With masks folded in or channels gone.

    Raises:
        ConfigError: If a constraint is not met; says how close it came.
    """
    wanted = context.recipe.constraints
    found: dict[str, dict[str, float]] = {}
    if wanted.weights is None and wanted.macs is None:
        return found
    inputs = context.example_inputs
    dense = network_costs(context.model, inputs, ())
    if wanted.weights is not None:
        target = absolute(wanted.weights, dense.weights.dense)
        found["weights"] = {"target": target, "value": float(_nonzero_weights(network))}
    if wanted.macs is not None:
        device = next(network.parameters()).device
        value = sum(cost.macs for cost in count_macs(network, inputs.to(device)).values())
        found["macs"] = {"target": absolute(wanted.macs, dense.macs.dense), "value": float(value)}
    _refuse_missed(found, "the compacted network")
    return found


@torch.no_grad()
def _nonzero_weights(network: nn.Module) -> int:
    weights = {id(m.weight): m.weight for m in network.modules() if isinstance(m, PRUNABLE)}
    return sum(int(torch.count_nonzero(weight)) for weight in weights.values())


def check_exported(context: Context, files: Sequence[Exported]) -> dict[str, dict[str, float]]:
    """Check the exported files; return target and value of each constraint on bytes and latency.

    Raises:
        ConfigError: If a constraint is not met; says how close it came.
    """
    wanted = context.recipe.constraints
    found: dict[str, dict[str, float]] = {}
    if wanted.bytes is not None:
        found["bytes"] = {"target": wanted.bytes, "value": float(max(file.size_bytes for file in files))}
    if wanted.latency_ms is not None and cost_table(context).is_of_this_device:
        target = wanted.latency_ms * (1 + wanted.latency_tolerance)
        found["latency_ms"] = {"target": target, "value": slowest_ms(context, files, wanted=target)}
    _refuse_missed(found, "the exported file")
    return found


def _refuse_missed(found: Mapping[str, Mapping[str, float]], what: str) -> None:
    lines = [
        missed(n, row["value"], row["target"], what)
        for n, row in found.items()
        if row["value"] > row["target"]
    ]
    if lines:
        raise ConfigError(" ".join(lines))
