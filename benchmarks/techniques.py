"""Ways to prune a robust network, from the same dense network, at equal training: what AutoAttack leaves.

    python benchmarks/techniques.py [--quick] [--data fashion-mnist|cifar10] [--data-dir FOLDER]
                                    [--seeds 0,1,2] [--out FOLDER] [--json]

A thin protocol: small networks and subsets, named so in the table. Fashion-MNIST: small_cnn, Linf eps 0.1.
CIFAR-10: resnet18 with 16 channels in its first stage, Linf eps 8/255. 10,000 training images each (a
balanced subset; 10% of it selects epochs), TRADES. One dense network a seed is pretrained; from it every row
trains for P + F epochs: HYDRA learns scores for P and finetunes for F, under a uniform and under a learned
budget; Flying Bird moves masks while it trains for P + F; LWM and the dense network train what they keep for
P + F. No row searches any setting. The rows face clean images, PGD-50 and AutoAttack, all on the same 500
test images; the numbers are the exported file's. Rows that are finished are kept in --out and not run
again; --only N works on one seed.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from common import ONE_EPOCH_EACH, accuracy, commit, finish, finished, grouped, run, spread

import robustcompress
from robustcompress.recipe import with_changes

PRUNE, FINETUNE = 4, 6
SPARSITIES = (0.9, 0.95, 0.99)
METHODS: dict[str, dict[str, Any]] = {
    "lwm": {"score": "magnitude"},
    "hydra": {},
    "hydra, learned budget": {"budget": "learned"},
    "flying bird": {"score": {"kind": "flying_bird", "start": "magnitude"}},
}
ATTACKS: list[dict[str, Any]] = [{"kind": "pgd", "steps": 50}, {"kind": "autoattack"}]
NAMES = {"clean": "clean", "PGD": "PGD-50", "AutoAttack": "AutoAttack"}
SETS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {"data": {"kind": "fashion_mnist", "train_size": 10_000}},
    "cifar10": {
        "data": {"kind": "cifar10", "train_size": 10_000},
        "model": {"kind": "resnet18", "width": 16},
        "threat": {"norm": "linf", "eps": 8 / 255},
    },
}


def base(data: str, folder: Path | None, seed: int, *, quick: bool) -> dict[str, Any]:
    values = robustcompress.Recipe.preset("default").model_dump(mode="json")
    changes: dict[str, Any] = {
        **SETS[data],
        "seed": seed,
        "evaluation.attacks": ATTACKS,
        "evaluation.curve": [],
        "evaluation.limit": 500,
        "evaluation.examples": 0,
        "pretrain.epochs": 10,
        "prune.epochs": PRUNE,
        "finetune.epochs": FINETUNE,
    }
    if folder is not None:
        changes["data"] = {**changes["data"], "dir": str(folder)}
    if quick:
        changes |= {
            "data": {"kind": "fashion_mnist_mini", "train_size": 600},
            "evaluation.limit": 40,
            "evaluation.alarms": False,
            "evaluation.attacks": [{"kind": "pgd", "steps": 10}],
            **ONE_EPOCH_EACH,
        }
    return with_changes(values, changes)


def rows(*, quick: bool) -> list[tuple[str, float]]:
    levels = SPARSITIES[1:2] if quick else SPARSITIES
    return [("dense", 0.0), *((method, level) for level in levels for method in METHODS)]


def row(method: str, level: float, values: dict[str, Any], out: Path) -> dict[str, Any]:
    """Return one row; trains what is not there yet."""
    seed = out / f"seed{values['seed']}"
    name = method.replace(", ", "-").replace(" ", "-")
    folder = seed / (name if method == "dense" else f"{name}-{level:g}")
    if (earlier := finished(folder)) is not None:
        return earlier
    run(values, seed / "pretrained", ["pretrain"])
    total = values["prune"]["epochs"] + values["finetune"]["epochs"]
    changes: dict[str, Any] = {"weights": str(seed / "pretrained" / "stages" / "pretrain"), "sparsity": level}
    changes |= METHODS.get(method, {})
    stages = ["finetune"] if method == "dense" else ["prune", "finetune"]
    if method in ("dense", "lwm"):
        changes["finetune.epochs"] = total
    if method == "flying bird":
        # Weights train in its prune stage, at the finetuning rate; nothing is left to finetune.
        tuned = values["finetune"]
        kept = {key: tuned[key] for key in ("optimizer", "lr", "warmup_epochs")}
        changes |= {f"prune.{key}": value for key, value in kept.items()}
        changes |= {"prune.network_lr": None, "prune.epochs": total, "finetune.epochs": 0}
    result = run(with_changes(values, changes), folder, [*stages, "compact", "export", "evaluate"])
    found = {
        "method": method,
        "level": level,
        "seed": values["seed"],
        "data": result.report.run.data,
        "bytes": result.files[0].size_bytes,
        "device": result.report.run.device,
        "measurements": [m.model_dump(mode="json") for m in result.report.measurements],
    }
    return finish(folder, found)


def table(found: list[dict[str, Any]], attacks: list[str]) -> str:
    heads = ["network", "sparsity", *(NAMES[name] for name in attacks), "file, bytes"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (method, level), group in grouped(found, "method", "level").items():
        cells = [spread([accuracy(item, attack) for item in group]) for attack in attacks]
        size = round(statistics.mean(item["bytes"] for item in group))
        lines.append(f"| {method} | {level:.0%} | {' | '.join(cells)} | {size:,} |")
    return "\n".join(lines)


def figures(found: list[dict[str, Any]], attack: str) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{method}, {level:.0%} sparse, file, {NAMES[attack]}",
            "value": round(statistics.mean(accuracy(item, attack) for item in group), 4),
            "target": None,
            "higher_is_better": True,
        }
        for (method, level), group in grouped(found, "method", "level").items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, bundled images, under a minute")
    parser.add_argument("--data", choices=list(SETS), default="fashion-mnist")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", type=int, default=None, help="work on this seed's rows and print nothing")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", action="store_true", help="no table, only the last line")
    args = parser.parse_args()
    name = "quick" if args.quick else args.data
    out = args.out or Path("runs") / f"benchmark-techniques-{name}"
    seeds = [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]
    found = [
        row(method, level, base(args.data, args.data_dir, seed, quick=args.quick), out)
        for seed in (seeds if args.only is None else [args.only])
        for method, level in rows(quick=args.quick)
    ]
    if args.only is not None:
        return
    attacks = ["clean", "PGD"] if args.quick else list(NAMES)
    if not args.json:
        print(table(found, attacks))
    device = ", ".join(sorted({item["device"] for item in found}))
    print(json.dumps({"figures": figures(found, attacks[-1]), "device": device, "commit": commit()}))


if __name__ == "__main__":
    sys.exit(main())
