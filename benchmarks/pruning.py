"""HYDRA against the lowest-weight-magnitude baseline: clean and robust accuracy, network and exported file.

    python benchmarks/pruning.py [--quick] [--seeds 0,1,2] [--out FOLDER] [--json]

Fashion-MNIST, 10,000 training images (a balanced subset; 10% of it selects epochs), small_cnn, TRADES at
Linf eps 0.1. One dense network a seed is pretrained; from it, every row trains equally long: HYDRA prunes for
P epochs and finetunes for F, LWM and the dense network train their kept weights for P + F. LWM and HYDRA get
the same search: two finetuning rates, chosen by validation robust accuracy on the first seed, then used for
all seeds. All rows face the same attacks on the same 1,000 test images. Rows that are finished are kept in
--out and not run again; --only N works on one seed, so that several processes can share the work.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from common import accuracy, commit, finish, finished, grouped, run, spread

import robustcompress
from robustcompress.recipe import with_changes

PRUNE, FINETUNE = 4, 5
SPARSITIES = (0.9, 0.95, 0.99)
RATES = (0.003, 0.01)
ATTACKS = [
    {"kind": "pgd", "steps": 50, "restarts": 1},
    {"kind": "apgd", "steps": 50},
    {"kind": "apgd", "steps": 50, "loss": "dlr"},
]


def base(seed: int, *, quick: bool) -> dict[str, Any]:
    values = robustcompress.Recipe.preset("default").model_dump(mode="json")
    changes: dict[str, Any] = {
        "seed": seed,
        "evaluation.attacks": ATTACKS,
        "evaluation.curve": [],
        "evaluation.limit": 1000,
        "evaluation.examples": 0,
        "pretrain.epochs": 8,
        "pretrain.warmup_epochs": 1.6,
        "prune.epochs": PRUNE,
        "finetune.epochs": FINETUNE,
        "finetune.warmup_epochs": 0.5,
    }
    if quick:
        changes |= {"pretrain.epochs": 3, "prune.epochs": 1, "finetune.epochs": 1, "evaluation.limit": 200}
        changes["data"] = {"kind": "fashion_mnist_mini", "train_size": 3000}
        changes["pretrain.warmup_epochs"] = changes["prune.warmup_epochs"] = 0
        changes["finetune.warmup_epochs"] = 0
    else:
        changes["data"] = {"kind": "fashion_mnist", "train_size": 10_000}
    return with_changes(values, changes)


def rows(quick: bool) -> list[tuple[str, float]]:
    levels = (0.95,) if quick else SPARSITIES
    return [("dense", 0.0), *[(method, level) for level in levels for method in ("lwm", "hydra")]]


def place(method: str, sparsity: float, rate: float | None, seed: int, out: Path) -> Path:
    name = f"{method}-{sparsity:g}" if rate is None else f"{method}-{sparsity:g}-{rate:g}"
    return out / f"seed{seed}" / name


def settings(method: str, sparsity: float, rate: float | None, seed: int, out: Path, *, quick: bool) -> Any:
    """Return (values, stages) of one row, its dense network trained if it was not yet."""
    values = base(seed, quick=quick)
    pretrained = out / f"seed{seed}" / "pretrained"
    run(values, pretrained, ["pretrain"])
    epochs = values["prune"]["epochs"] + values["finetune"]["epochs"]
    changes: dict[str, Any] = {"weights": str(pretrained / "stages" / "pretrain"), "sparsity": sparsity}
    if method != "hydra":
        changes |= {"score": "magnitude", "finetune.epochs": epochs}
    if rate is not None:
        changes["finetune.lr"] = rate
    stages = ["finetune"] if method == "dense" else ["prune", "finetune"]
    return with_changes(values, changes), stages


def best_rate(method: str, sparsity: float, seed: int, out: Path, *, backwards: bool) -> float:
    """Return the finetuning rate with the best validation robust accuracy on ``seed``."""
    found: dict[float, float] = {}
    for rate in sorted(RATES, reverse=backwards):  # two processes begin at either end
        values, stages = settings(method, sparsity, rate, seed, out, quick=False)
        folder = place(method, sparsity, rate, seed, out)
        run(values, folder, stages)
        record = json.loads((folder / "stages" / "finetune" / "artifact.json").read_text())
        found[rate] = record["metrics"]["selected"]["validation_robust"]
    return max(found, key=lambda rate: found[rate])


def row(method: str, sparsity: float, seed: int, out: Path, *, quick: bool, first: int) -> dict[str, Any]:
    searched = method != "dense" and not quick
    rate = best_rate(method, sparsity, first, out, backwards=seed != first) if searched else None
    folder = place(method, sparsity, rate, seed, out)
    if (earlier := finished(folder)) is not None:
        return earlier
    values, stages = settings(method, sparsity, rate, seed, out, quick=quick)
    result = run(values, folder, [*stages, "compact", "export", "evaluate"])
    found = {
        "method": method,
        "sparsity": sparsity,
        "seed": seed,
        "finetune_lr": values["finetune"]["lr"],
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
    "worst": "worst",
}


def table(found: list[dict[str, Any]]) -> str:
    heads = [*NAMES.values(), *(f"file: {name}" for name in NAMES.values()), "file, bytes"]
    lines = [f"| network | sparsity | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for (method, sparsity), group in grouped(found, "method", "sparsity").items():
        cells = [
            spread([accuracy(item, attack, network=network) for item in group])
            for network in (True, False)
            for attack in NAMES
        ]
        size = round(statistics.mean(item["bytes"] for item in group))
        lines.append(f"| {method} | {sparsity:.0%} | {' | '.join(cells)} | {size:,} |")
    return "\n".join(lines)


def figures(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    levels = sorted({item["sparsity"] for item in found if item["sparsity"]})
    groups = grouped(found, "method", "sparsity")
    made: list[dict[str, Any]] = []
    for level in levels:
        for attack in NAMES:
            means = {
                method: statistics.mean(accuracy(item, attack) for item in groups[method, level])
                for method in ("hydra", "lwm")
            }
            made.append(
                {
                    "name": f"HYDRA minus LWM, file, {NAMES[attack]}, {level:.0%} sparse",
                    "value": round(means["hydra"] - means["lwm"], 4),
                    "target": 0.0 if level >= 0.95 and attack != "clean" else None,
                    "higher_is_better": True,
                }
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, bundled images, under a minute")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", type=int, default=None, help="work on this seed and print nothing")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", action="store_true", help="no table, only the last line")
    args = parser.parse_args()
    out = args.out or Path("runs") / ("benchmark-pruning-quick" if args.quick else "benchmark-pruning")
    seeds = [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]
    found = [
        row(method, sparsity, seed, out, quick=args.quick, first=seeds[0])
        for seed in (seeds if args.only is None else [args.only])
        for method, sparsity in rows(args.quick)
    ]
    if args.only is not None:
        return
    if not args.json:
        print(table(found))
    device = ", ".join(sorted({item["device"] for item in found}))
    print(json.dumps({"figures": figures(found), "device": device, "commit": commit()}))


if __name__ == "__main__":
    sys.exit(main())
