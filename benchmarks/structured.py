"""Channels removed: what that is worth in a stock runtime, and what each budget leaves of the robustness.

    python benchmarks/structured.py [--quick] [--seeds 0,1] [--out FOLDER] [--json]

Speed: resnet18 and vgg16_bn at 32x32, untrained, 50 and 75% of the channels of every group removed by
magnitude, widths rounded to 16; then 75 and 85% of them where every group keeps 32 at least. Dense float32
ONNX files of all in ONNX Runtime, batch 1, one thread. Files take turns, and CPU-seconds are counted, so that
other work on the machine disturbs all alike. The figure is the speed-up over the dense network as a fraction
of the ratio of multiply-adds.

Accuracy: a network of three convolutions (32, 64 and 64 channels) and two linear layers on Fashion-MNIST,
10,000 training images (a balanced subset; 10% of it selects epochs), TRADES at Linf eps 0.1. One dense
network a seed is pretrained; from it every row prunes for P epochs by learned scores and finetunes for F,
whatever its budget. "50%" and "75%" are the multiply-adds that a uniform budget of so many channels leaves:
the other budgets get them as a constraint, so that the rows of a level cost the same to run; "learned,
weights" gets the weights that uniform leaves instead. All rows face the same attacks on the same 1,000 test
images, and the numbers are those of the exported file. Rows that are finished are kept in --out and not run
again; --only N works on one seed.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ONE_EPOCH_EACH, accuracy, commit, finish, finished, grouped, run, spread
from torch import nn

import robustcompress
from robustcompress.graph.cost import count_macs
from robustcompress.pruning.compaction import compact
from robustcompress.pruning.costs import network_costs
from robustcompress.pruning.masking import Masking
from robustcompress.recipe import with_changes

PRUNE, FINETUNE = 4, 6
LEVELS = (0.5, 0.75)
SPEEDS = ((0.5, 1), (0.75, 1), (0.75, 32), (0.85, 32))  # removed, and how many channels stay at least
BUDGETS = ("uniform", "global", "learned", "learned, weights")
ATTACKS = [
    {"kind": "pgd", "steps": 50, "restarts": 1},
    {"kind": "apgd", "steps": 50},
    {"kind": "apgd", "steps": 50, "loss": "dlr"},
]
SPEED_TARGET = 0.95


def smaller(name: str, level: float, least: int) -> nn.Module:
    """Return a network of the zoo without a fraction of its channels; 0 leaves it whole."""
    torch.manual_seed(0)
    network = robustcompress.networks.Network.find(name).build().eval()
    images = torch.rand(2, 3, 32, 32)
    plan = robustcompress.patterns.Channel(least=least).plan(network, images, ())
    masking = Masking(
        plan.sites,
        score=robustcompress.scores.Magnitude(),
        budget=robustcompress.budgets.Uniform(),
        sparsity=level,
        parameters=dict(network.named_parameters()),
    )
    masking.bake(network)
    return compact(network, images).network


def speed(name: str, kinds: Sequence[tuple[float, int]], *, rounds: int) -> list[dict[str, Any]]:
    """Return for each of ``kinds``, which are as ``SPEEDS``, the ratio of multiply-adds and the speed-up."""
    images = torch.rand(1, 3, 32, 32)
    sessions: list[Any] = []
    macs: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        for level, least in ((0.0, 1), *kinds):
            network = smaller(name, level, least)
            path = Path(folder) / f"{level}-{least}.onnx"
            robustcompress.formats.Onnx(style="dense").write(network, path, images=images, metadata={})
            sessions.append(robustcompress.OnnxSession(path, threads=1))
            macs.append(sum(cost.macs for cost in count_macs(network, images).values()))
    taken: list[list[float]] = [[] for _ in sessions]
    for number in range(rounds):
        for session, times in zip(sessions, taken, strict=True):
            begun = time.process_time()
            session(images)
            if number >= rounds // 10:
                times.append(time.process_time() - begun)
    # The lower quartile: what a call takes where nothing evicts its weights from the caches.
    seconds = [float(np.quantile(times, 0.25)) for times in taken]
    return [
        {
            "network": name,
            "level": level,
            "least": least,
            "ms": 1000 * seconds[index],
            "dense_ms": 1000 * seconds[0],
            "macs": macs[0] / macs[index],
            "faster": seconds[0] / seconds[index],
        }
        for index, (level, least) in enumerate(kinds, start=1)
    ]


def base(seed: int, *, quick: bool) -> dict[str, Any]:
    values = robustcompress.Recipe.preset("default").model_dump(mode="json")
    changes: dict[str, Any] = {
        "seed": seed,
        "model": {"kind": "small_cnn", "widths": [32, 64, 64], "kernel_sizes": [3, 3, 3]},
        "pattern": {"kind": "channel", "round_to": 4},  # finer than the default: so few are hard to budget
        "data": {"kind": "fashion_mnist", "train_size": 10_000},
        "evaluation.attacks": ATTACKS,
        "evaluation.curve": [],
        "evaluation.limit": 1000,
        "evaluation.examples": 0,
        "pretrain.epochs": 10,
        "prune.epochs": PRUNE,
        "finetune.epochs": FINETUNE,
    }
    if quick:
        changes |= {
            "data": {"kind": "fashion_mnist_mini", "train_size": 400},
            "evaluation.limit": 100,
            "evaluation.alarms": False,
            "evaluation.attacks": [{"kind": "pgd", "steps": 10}],
            **ONE_EPOCH_EACH,
        }
    return with_changes(values, changes)


def left_by_uniform(values: dict[str, Any], level: float, cost: str) -> float:
    """Return the fraction of multiply-adds or weights that a uniform budget leaves."""
    network = robustcompress.networks.Network.find(values["model"]).build().eval()
    images = torch.rand(2, 1, 28, 28)
    sites = robustcompress.patterns.Pattern.find(values["pattern"]).plan(network, images, ()).sites
    costs = getattr(network_costs(network, images, sites), cost)
    scores = [torch.ones(site.shape) for site in sites]
    removed = robustcompress.budgets.Uniform().counts(sites, scores, level)
    return float(costs([site.units - gone for site, gone in zip(sites, removed, strict=True)]) / costs.dense)


def row(budget: str, level: float, seed: int, out: Path, *, quick: bool) -> dict[str, Any]:
    folder = out / f"seed{seed}" / (budget if budget == "dense" else f"{budget.replace(', ', '-')}-{level:g}")
    if (earlier := finished(folder)) is not None:
        return earlier
    values = base(seed, quick=quick)
    pretrained = out / f"seed{seed}" / "pretrained"
    run(values, pretrained, ["pretrain"])
    changes: dict[str, Any] = {"weights": str(pretrained / "stages" / "pretrain")}
    stages = ["prune", "finetune"]
    if budget == "dense":
        stages = ["finetune"]
        changes["finetune.epochs"] = values["prune"]["epochs"] + values["finetune"]["epochs"]
    elif budget == "uniform":
        changes |= {"budget": budget, "sparsity": level}
    else:
        kind, _, other = budget.partition(", ")
        cost = other or "macs"
        changes |= {"budget": kind, "constraints": {cost: left_by_uniform(values, level, cost)}}
        if kind == "learned":
            changes["budget"] = {"kind": kind, "cost": cost}
    result = run(with_changes(values, changes), folder, [*stages, "compact", "export", "evaluate"])
    images = torch.rand(1, 1, 28, 28)
    found = {
        "budget": budget,
        "level": level,
        "seed": seed,
        "macs": sum(cost.macs for cost in count_macs(result.network, images).values()),
        "weights": sum(cost.weights for cost in count_macs(result.network, images).values()),
        "bytes": result.files[0].size_bytes,
        "device": result.report.run.device,
        "measurements": [m.model_dump(mode="json") for m in result.report.measurements],
    }
    return finish(folder, found)


NAMES = {
    "clean": "clean",
    "PGD": "PGD-50",
    "APGD-CE": "APGD-CE-50",
    "APGD-DLR": "APGD-DLR-50",
    "worst": "worst case",
}


def table(found: list[dict[str, Any]], attacks: list[str]) -> str:
    heads = [
        "budget",
        "channels",
        "multiply-adds",
        "weights",
        *(NAMES[name] for name in attacks),
        "file, bytes",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (budget, level), group in grouped(found, "budget", "level").items():
        means = [
            round(statistics.mean(item[name] for item in group)) for name in ("macs", "weights", "bytes")
        ]
        cells = [spread([accuracy(item, attack) for item in group]) for attack in attacks]
        removed = "none" if budget == "dense" else f"{level:.0%}"
        lines.append(
            f"| {budget} | {removed} | {means[0]:,} | {means[1]:,} | {' | '.join(cells)} | {means[2]:,} |"
        )
    return "\n".join(lines)


def speed_table(found: list[dict[str, Any]]) -> str:
    heads = [
        "network",
        "channels removed",
        "kept at least",
        "dense, ms",
        "ms",
        "multiply-adds, ratio",
        "faster",
        "fraction",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [
        f"| {item['network']} | {item['level']:.0%} | {item['least']} | {item['dense_ms']:.2f} | "
        f"{item['ms']:.2f} | {item['macs']:.2f} | {item['faster']:.2f}x | "
        f"{item['faster'] / item['macs']:.2f} |"
        for item in found
    ]
    return "\n".join(lines)


def figures(speeds: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made = [
        {
            "name": f"{item['network']}, {item['level']:.0%} of channels"
            + (f", {item['least']} kept at least" if item["least"] > 1 else "")
            + ": speed-up over ratio of MACs",
            "value": round(item["faster"] / item["macs"], 3),
            "target": SPEED_TARGET,
            "higher_is_better": True,
        }
        for item in speeds
    ]
    for (budget, level), group in grouped(found, "budget", "level").items():
        made.append(
            {
                "name": f"file, worst case, {budget}" + (f", {level:.0%} of channels" if level else ""),
                "value": round(statistics.mean(accuracy(item, "worst") for item in group), 4),
                "target": None,
                "higher_is_better": True,
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, bundled images, under a minute")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--only", type=int, default=None, help="work on this seed's rows and print nothing")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", action="store_true", help="no tables, only the last line")
    args = parser.parse_args()
    out = args.out or Path("runs") / ("benchmark-structured-quick" if args.quick else "benchmark-structured")
    seeds = [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]
    levels = LEVELS[:1] if args.quick else LEVELS
    budgets = ("uniform", "learned") if args.quick else BUDGETS
    rows = [("dense", 0.0), *((budget, level) for level in levels for budget in budgets)]
    found = [
        row(budget, level, seed, out, quick=args.quick)
        for seed in (seeds if args.only is None else [args.only])
        for budget, level in rows
    ]
    if args.only is not None:
        return
    if args.quick:
        speeds = speed("resnet18", SPEEDS[1:3], rounds=20)
    else:
        speeds = [item for name in ("resnet18", "vgg16_bn") for item in speed(name, SPEEDS, rounds=300)]
    if not args.json:
        print(speed_table(speeds), end="\n\n")
        print(table(found, ["clean", "PGD", "worst"] if args.quick else list(NAMES)))
    device = ", ".join(sorted({item["device"] for item in found}))
    print(json.dumps({"figures": figures(speeds, found), "device": device, "commit": commit()}))


if __name__ == "__main__":
    sys.exit(main())
