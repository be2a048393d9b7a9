"""AutoAttack here against the reference implementation: the same robust accuracy, in how much less time.

    python benchmarks/attack.py [--quick] [--images 200] [--out FOLDER] [--json]

small_cnn on Fashion-MNIST (10,000 training images), float32, CPU-seconds on one thread. The same test images
go to `pyautoattack` (standard, Linf) and to AutoAttack here, part by part, the two taking turns, each with
its own random numbers. "trades" was trained by TRADES, and no bound says anything about it. "mixed" was
trained by MTL-IBP at a smaller radius than it is judged at, so that bounds prove much, and an attack can
still fail where they do. Certified accuracy is `best` (intervals, CROWN-IBP, CROWN) at the same radius.

Here AutoAttack gets what an evaluation of an exported network gives it: a session of the export for the
attack that asks for logits alone, a copy with batch normalisation folded, and bounds first. Whatever it finds
is scored on the network itself. A point that one of the two breaks and the other does not is a "point that
differs".
"""

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import commit, run, seconds
from torch import Tensor, nn

import robustcompress
from robustcompress.recipe import with_changes
from robustcompress.robustness.target import Target

CPU = torch.device("cpu")


class Case(NamedTuple):
    """A network, and what is asked of it."""

    eps: float
    trained_at: float
    objective: dict[str, Any]
    batch_norm: bool
    epochs: int
    faster: float  # how many times, at least


CASES = {
    "trades": Case(0.1, 0.1, {"kind": "trades", "beta": 6.0, "steps": 7}, True, 10, 2.0),
    "mixed": Case(0.1, 0.08, {"kind": "mtl_ibp", "alpha": 0.05}, False, 16, 6.0),
}


def trained(case: Case, folder: Path, *, quick: bool) -> nn.Module:
    """Return the network, trained if that is not yet done."""
    values = with_changes(
        robustcompress.Recipe.preset("default").model_dump(mode="json"),
        {
            "model": {"kind": "small_cnn", "batch_norm": case.batch_norm},
            "data": {"kind": "fashion_mnist_mini"}
            if quick
            else {"kind": "fashion_mnist", "train_size": 10_000},
            "threat": {"norm": "linf", "eps": case.trained_at},
            "objective": case.objective,
            "pretrain.epochs": 3 if quick else case.epochs,
            "pretrain.lr": 0.001,
            "pretrain.select": "last",
            "validation": {"attack": {"kind": "pgd", "steps": 1}, "limit": 1},
        },
    )
    run(values, folder, ["pretrain"])
    network: nn.Module = robustcompress.load(folder / "stages" / "pretrain").eval()
    return network


def test_images(count: int, *, quick: bool) -> tuple[Tensor, Tensor]:
    """Return the first ``count`` test images and their labels."""
    name = robustcompress.datasets.FashionMnistMini() if quick else robustcompress.datasets.FashionMnist()
    images = name.open("test")
    assert isinstance(images, robustcompress.ImageSet)
    return images.images[:count].float() / 255, images.labels[:count].long()


def by_reference(network: nn.Module, eps: float, images: Tensor, labels: Tensor) -> Tensor:
    """Return which images withstand the reference's AutoAttack; bool ``[batch]``."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(network, norm="Linf", eps=eps, seed=0, device="cpu", version="standard")
    adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=250)
    with torch.no_grad():
        clean, attacked = network(images).argmax(1), network(adversarial).argmax(1)
    return torch.eq(clean, labels) & torch.eq(attacked, labels)


def by_us(target: Target, eps: float, images: Tensor, labels: Tensor) -> Tensor:
    """Return which images withstand AutoAttack here; bool ``[batch]``."""
    attack = robustcompress.attacks.AutoAttack()
    found = robustcompress.evaluate(
        target,
        [(images, labels)],
        threat=robustcompress.Threat(eps=eps),
        attacks=[attack],
        seed=0,
        device="cpu",
        keep_examples=0,
    )
    return dict(found.outcomes["network"])[str(attack)]


def exported(network: nn.Module, images: Tensor) -> robustcompress.OnnxSession:
    """Return a session of the network's export, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        robustcompress.formats.Onnx(style="dense").write(network, path, images=images[:8], metadata={})
        return robustcompress.OnnxSession(path.read_bytes(), threads=1)


def certified(network: nn.Module, eps: float, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that bounds certify."""
    found = robustcompress.certify(
        network, [(images, labels)], certifier=robustcompress.certifiers.Best(radii=(eps,))
    )
    return robustcompress.certified_accuracy(found, [eps])[0].accuracy


def compare(name: str, out: Path, count: int, *, quick: bool) -> dict[str, Any]:
    """Return one row."""
    case = CASES[name]
    network = trained(case, out / name, quick=quick)
    images, labels = test_images(count, quick=quick)
    target = Target(network, network, quick=exported(network, images))
    spent = {"reference": 0.0, "here": 0.0}
    standing: dict[str, list[Tensor]] = {"reference": [], "here": []}
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "reference": lambda few, own: by_reference(network, case.eps, few, own),
        "here": lambda few, own: by_us(target, case.eps, few, own),
    }
    parts = list(zip(images.chunk(2), labels.chunk(2), strict=True))
    for place, (few, own) in enumerate(parts):
        for way in sorted(ways, reverse=place % 2 == 0):

            def judge(way: str = way, few: Tensor = few, own: Tensor = own) -> None:
                standing[way].append(ways[way](few, own))

            spent[way] += seconds(judge, CPU)
    theirs, ours = (torch.cat(standing[way]) for way in ("reference", "here"))
    with torch.no_grad():
        clean = float((network(images).argmax(1) == labels).float().mean())
    return {
        "network": name,
        "eps": case.eps,
        "images": len(labels),
        "clean": clean,
        "reference": float(theirs.float().mean()),
        "here": float(ours.float().mean()),
        "differ": int((theirs != ours).sum()),
        "certified": certified(network, case.eps, images, labels),
        "reference_seconds": spent["reference"],
        "seconds": spent["here"],
        "faster": spent["reference"] / spent["here"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [
        "| network | eps | images | clean | reference | here | points that differ | certified | reference, s "
        "| here, s | faster |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracies = " | ".join(f"{100 * row[key]:.1f}" for key in ("clean", "reference", "here"))
        lines.append(
            f"| {row['network']} | {row['eps']:g} | {row['images']} | {accuracies} | {row['differ']} "
            f"| {100 * row['certified']:.1f} | {row['reference_seconds']:.1f} | {row['seconds']:.1f} "
            f"| {row['faster']:.1f}x |"
        )
    return "\n".join(lines)


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the table says, with targets."""
    made: list[dict[str, Any]] = []
    for row in rows:
        name = row["network"]
        told: list[tuple[str, float, float | None, bool]] = [
            ("reference's seconds over ours", round(row["faster"], 2), CASES[name].faster, True),
            (
                "robust accuracy, difference in points",
                round(100 * abs(row["here"] - row["reference"]), 2),
                0.5,
                False,
            ),
            ("robust accuracy", round(row["here"], 4), None, True),
            (
                "attacked minus certified, points",
                round(100 * (row["here"] - row["certified"]), 1),
                None,
                True,
            ),
        ]
        made += [
            {"name": f"{name}: {what}", "value": value, "target": target, "higher_is_better": higher}
            for what, value, target, higher in told
        ]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images and little training, under a minute")
    parser.add_argument("--images", type=int, default=None, help="test images of each network [200, quick 8]")
    parser.add_argument("--only", default=None, choices=CASES, help="one network")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", action="store_true", help="no table, only the last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="pyautoattack")
    logging.getLogger("auto-attack").setLevel(logging.CRITICAL)
    out = args.out or Path("runs") / ("benchmark-attack-quick" if args.quick else "benchmark-attack")
    count = args.images or (8 if args.quick else 200)
    names = [args.only] if args.only else list(CASES)
    rows = [compare(name, out, count, quick=args.quick) for name in names]
    if not args.json:
        print(table(rows))
    print(json.dumps({"figures": figures(rows), "device": "cpu", "commit": commit()}))


if __name__ == "__main__":
    main()
