"""HYDRA's certified experiments in small: HYDRA against LWM, trained for certificates in three ways.

    python benchmarks/certified.py [--quick] [--seeds 0,1] [--out FOLDER] [--json]

Fashion-MNIST, 10,000 training images (a balanced subset), small_cnn without batch normalisation. Randomized
smoothing (stability training) is certified by Monte-Carlo, MixTrain and CROWN-IBP by bounds; each on the
exported ONNX file, for the bounds from the graph that the file holds. One dense network a technique and seed
is pretrained; from it HYDRA prunes for P epochs and finetunes for F, LWM and the dense network train their
kept weights for P + F. All rows have the same optimizers and rates, but that HYDRA's scores learn at one of
two, whichever ends with the smaller training loss on the first seed. All take their last epoch (nothing is
selected), and those of a technique are judged on the same test images. Rows that are finished are kept in
--out and not computed again; --only TECHNIQUE:SEED works on one part, so that processes can share the work.

"hidden" prunes a network that was trained without any of this, weights untouched, by its interval bounds: the
sub-network of half of its weights is certified where the whole is not.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from common import commit, finish, finished, grouped, run, spread

import robustcompress
from robustcompress.recipe import with_changes

SPARSITIES = (0.9, 0.95, 0.99)
PRUNE, FINETUNE = 8, 12
RATES = (0.0001, 0.001)


class Technique(NamedTuple):
    """How a certified technique trains, and how it is judged."""

    norm: Literal["linf", "l2"]
    radius: float
    objective: dict[str, Any]
    tuned: dict[str, Any]  # the objective in prune and finetune
    certifier: dict[str, Any]
    images: int
    benign: bool = False  # the network is trained without any of it, and only pruned with it


TECHNIQUES = {
    "smoothing": Technique(
        "l2",
        0.25,
        {"kind": "smoothing", "form": "stability", "sigma": 0.25, "beta": 6.0},
        {"kind": "smoothing", "form": "stability", "sigma": 0.25, "beta": 6.0},
        {"kind": "smoothing", "sigma": 0.25, "n": 1000, "n0": 100, "alpha": 0.001},
        500,
    ),
    "mixtrain": Technique(
        "linf",
        0.05,
        {"kind": "mixtrain"},
        {"kind": "mixtrain", "ramp": 0},
        {"kind": "best", "radii": [0.05]},
        300,
    ),
    "crown_ibp": Technique(
        "linf",
        0.05,
        {"kind": "crown_ibp", "ramp": 0.6},
        {"kind": "crown_ibp", "ramp": 0},
        {"kind": "best", "radii": [0.05], "crown_entries": 0},
        1000,
    ),
    "hidden": Technique(
        "linf",
        0.02,
        {"kind": "natural"},
        {"kind": "ibp", "ramp": 0.5, "kappa_end": 0.0},
        {"kind": "best", "radii": [0.02], "crown_entries": 0},
        1000,
        benign=True,
    ),
}


def recipe(technique: Technique, seed: int, *, quick: bool) -> dict[str, Any]:
    """Return the settings that every row of a technique shares."""
    epochs = (2, 1, 1) if quick else (16, PRUNE, FINETUNE)
    changes: dict[str, Any] = {
        "seed": seed,
        "model": {"kind": "small_cnn", "batch_norm": False},
        "data": {"kind": "fashion_mnist_mini", "train_size": 2000}
        if quick
        else {"kind": "fashion_mnist", "train_size": 10_000},
        "threat": {"norm": technique.norm, "eps": technique.radius},
        "objective": technique.tuned,
        "pretrain.objective": technique.objective,
        "validation": {"attack": {"kind": "pgd", "steps": 1}, "limit": 1},  # judged, but nothing is selected
    }
    for stage, count in zip(("pretrain", "prune", "finetune"), epochs, strict=True):
        changes |= {f"{stage}.{name}": value for name, value in STAGE.items()}
        changes[f"{stage}.epochs"] = count
    return with_changes(robustcompress.Recipe.preset("default").model_dump(mode="json"), changes)


STAGE = {
    "optimizer": "adam",
    "lr": 0.001,
    "network_lr": None,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "select": "last",
}


def rows(name: str, *, quick: bool) -> list[tuple[str, float]]:
    if TECHNIQUES[name].benign:
        return [("benign", 0.0), ("sub-network", 0.5)]
    levels = (0.95,) if quick else SPARSITIES
    return [("dense", 0.0), *[(method, level) for level in levels for method in ("lwm", "hydra")]]


def trained(
    name: str, method: str, sparsity: float, seed: int, out: Path, *, quick: bool, rate: float | None
) -> tuple[Path, Any]:
    """Train a row, its dense network too if that is not yet done; return its folder and what came out."""
    technique = TECHNIQUES[name]
    folder = out / name / f"seed{seed}" / f"{method}-{sparsity:g}{'' if rate is None else f'-{rate:g}'}"
    values = recipe(technique, seed, quick=quick)
    pretrained = out / name / f"seed{seed}" / "pretrained"
    run(values, pretrained, ["pretrain"])
    changes: dict[str, Any] = {"weights": str(pretrained / "stages" / "pretrain"), "sparsity": sparsity}
    if technique.benign:
        changes |= {"finetune.epochs": 0, "prune.lr": 0.01, "prune.epochs": 0 if method == "benign" else 12}
    elif method != "hydra":
        changes["finetune.epochs"] = values["prune"]["epochs"] + values["finetune"]["epochs"]
        changes["score"] = "magnitude"
    if rate is not None:
        changes["prune.lr"] = rate
    stages = ["finetune"] if method in ("dense", "benign") else ["prune", "finetune"]
    return folder, run(with_changes(values, changes), folder, [*stages, "compact", "export"])


def score_rate(name: str, sparsity: float, first: int, out: Path) -> float:
    """Return the rate of HYDRA's scores that ends with the smaller training loss on the first seed."""
    losses: dict[float, float] = {}
    for rate in RATES:
        folder, _ = trained(name, "hydra", sparsity, first, out, quick=False, rate=rate)
        record = json.loads((folder / "stages" / "finetune" / "artifact.json").read_text())
        losses[rate] = record["metrics"]["history"][-1]["loss"]
    return min(losses, key=lambda rate: losses[rate])


def row(
    name: str, method: str, sparsity: float, seed: int, out: Path, *, quick: bool, first: int
) -> dict[str, Any]:
    technique = TECHNIQUES[name]
    searched = method == "hydra" and not quick
    rate = score_rate(name, sparsity, first, out) if searched else None
    folder, result = trained(name, method, sparsity, seed, out, quick=quick, rate=rate)
    if (earlier := finished(folder)) is not None:
        return earlier
    file = result.files[0]
    proof = robustcompress.certify_data_set(
        robustcompress.OnnxSession(file.path),
        "fashion_mnist",
        structure=robustcompress.read_network(file.path),
        certifier=technique.certifier | ({"n": 200} if quick and name == "smoothing" else {}),
        radii=[0.0, technique.radius],
        limit=50 if quick else technique.images,
        seed=seed,
        device="cpu",
        keep=folder / "certificates.jsonl",
    )
    count = len(proof.certificates)
    judged = robustcompress.evaluate(
        robustcompress.read_network(file.path),
        test_batches(count),
        threat=robustcompress.Threat(norm=technique.norm, eps=technique.radius),
        attacks=[robustcompress.attacks.Pgd(steps=20)],
        seed=seed,
        device="cpu",
    )
    found = {
        "technique": name,
        "method": method,
        "sparsity": sparsity,
        "seed": seed,
        "score_rate": rate,
        "images": count,
        "clean": judged.measurements[0].accuracy,
        "attacked": judged.measurements[1].accuracy,
        "smoothed": proof.accuracies[0].accuracy,
        "certified": proof.accuracies[1].accuracy,
        "abstained": proof.abstained,
        "bytes": file.size_bytes,
        "device": proof.device,
    }
    return finish(folder, found)


def test_batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the first ``count`` test images, as the certificates count them."""
    images = robustcompress.datasets.FashionMnist().open("test")
    assert isinstance(images, robustcompress.ImageSet)
    pixels = images.images[:count].float() / 255
    return list(zip(pixels.split(100), images.labels[:count].split(100), strict=True))


def table(found: list[dict[str, Any]]) -> str:
    """Return one table; ``attacked`` is PGD-20 in the certificate's norm, on the network without noise."""
    lines = [
        "| technique | network | sparsity | clean | attacked | certified | at radius | file, bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, method, sparsity), group in grouped(found, "technique", "method", "sparsity").items():
        technique = TECHNIQUES[name]
        cells = [spread([item[kind] for item in group]) for kind in ("clean", "attacked", "certified")]
        size = round(statistics.mean(item["bytes"] for item in group))
        lines.append(
            f"| {name} | {method} | {sparsity:.0%} | {' | '.join(cells)} | {technique.norm} "
            f"{technique.radius:g} | {size:,} |"
        )
    return "\n".join(lines)


def figures(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for name in dict.fromkeys(item["technique"] for item in found):
        if TECHNIQUES[name].benign:
            made.append(gain(name, found))
            continue
        own = [item for item in found if item["technique"] == name]
        for level in sorted({item["sparsity"] for item in own if item["sparsity"]}):
            for kind in ("clean", "certified"):
                means = {
                    method: statistics.mean(
                        item[kind] for item in own if (item["method"], item["sparsity"]) == (method, level)
                    )
                    for method in ("hydra", "lwm")
                }
                made.append(
                    {
                        "name": f"{name}: HYDRA minus LWM, {kind}, {level:.0%} sparse",
                        "value": round(means["hydra"] - means["lwm"], 4),
                        "target": 0.0 if kind == "certified" else None,
                        "higher_is_better": True,
                    }
                )
    return made


def gain(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how much certified accuracy pruning alone adds to a network that was trained without."""
    means = {
        method: statistics.mean(
            item["certified"] for item in found if (item["technique"], item["method"]) == (name, method)
        )
        for method in ("benign", "sub-network")
    }
    return {
        "name": f"{name}: sub-network minus the benign network that it is part of, certified",
        "value": round(means["sub-network"] - means["benign"], 4),
        "target": 0.0,
        "higher_is_better": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, one technique, under a minute")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--only", default=None, help="work on this technique:seed and print nothing")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", action="store_true", help="no table, only the last line")
    args = parser.parse_args()
    out = args.out or Path("runs") / ("benchmark-certified-quick" if args.quick else "benchmark-certified")
    seeds = [int(seed) for seed in args.seeds.split(",")]
    if args.only is not None:
        name, seed = args.only.split(":")
        parts = [(name, int(seed))]
    elif args.quick:
        parts = [("crown_ibp", 0)]
    else:
        parts = [(name, seed) for name in TECHNIQUES for seed in seeds]
    found = [
        row(name, method, sparsity, seed, out, quick=args.quick, first=seeds[0])
        for name, seed in parts
        for method, sparsity in rows(name, quick=args.quick)
    ]
    if args.only is not None:
        return
    if not args.json:
        print(table(found))
    device = ", ".join(sorted({item["device"] for item in found}))
    print(json.dumps({"figures": figures(found), "device": device, "commit": commit()}))


if __name__ == "__main__":
    main()
