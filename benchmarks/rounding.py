"""What settings that change a training step's rounding do to the result: robust accuracy over seeds.

    python benchmarks/rounding.py [--quick] [--seeds 0,1,2] [--arms exact,bf16-attack] [--out FOLDER] [--json]

The embedded default (small_cnn on 6,000 bundled images of Fashion-MNIST, TRADES at Linf eps 0.1, HYDRA at
90%), trained once for every arm and seed, then judged in float32 on 1,000 test images: clean, and the
pointwise worst case of PGD-50, APGD-CE-50 and APGD-DLR-50. A setting passes if its worst case is no lower
than the exact arm's by more than two standard errors of the difference (paired by seed) or half a point,
whichever is larger; one seed decides nothing.

Arms whose name ends in ``*`` emulate arithmetic that the processor may not have: inputs and weights of
convolutions and linear layers are rounded to bfloat16 (outputs, and those of normalisation, too) or TF32 and
multiplied in float32, in both directions, as matrix units do. Finished rows are kept in --out.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from common import accuracy, commit, finish, finished, run, spread
from pruning import ATTACKS
from torch import Tensor, nn

import robustcompress
from robustcompress.recipe import with_changes
from robustcompress.training import step
from robustcompress.training.working import WorkingNetworks

Where = Literal["attack", "everywhere"]

ARMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "fold_norms": {"step.fold_norms": True},
    "channels_last": {"step.memory_format": "channels_last"},
    "both": {"step.fold_norms": True, "step.memory_format": "channels_last"},
    "bf16 attack*": {},
    "bf16*": {},
    "tf32*": {},
}
EMULATED: dict[str, tuple[Literal["bf16", "tf32"], Where]] = {
    "bf16 attack*": ("bf16", "attack"),
    "bf16*": ("bf16", "everywhere"),
    "tf32*": ("tf32", "everywhere"),
}


def rounded(values: Tensor, kind: str) -> Tensor:
    if kind == "bf16":
        return values.to(torch.bfloat16).to(values.dtype)
    # TF32 keeps 10 of float32's 23 bits of fraction; ties go away from zero, as in the hardware.
    return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Round(torch.autograd.Function):
    """Round in the forward pass, in the backward pass, or in both."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kind: str, forwards: bool, backwards: bool) -> Tensor:
        ctx.kind, ctx.backwards = kind, backwards
        return rounded(values, kind) if forwards else values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return (rounded(gradients[0], ctx.kind) if ctx.backwards else gradients[0]), None, None, None


def emulate(network: nn.Module, kind: Literal["bf16", "tf32"]) -> None:
    """Let the layers of a working copy compute as a matrix unit does."""
    half = kind == "bf16"

    def operand(values: Tensor) -> Tensor:
        return Round.apply(values, kind, True, half)  # type: ignore[no-any-return,no-untyped-call]

    def result(values: Tensor) -> Tensor:
        return Round.apply(values, kind, half, True)  # type: ignore[no-any-return,no-untyped-call]

    def layer(module: nn.Conv2d | nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(images: Tensor) -> Tensor:
            weight = operand(module.weight)
            if isinstance(module, nn.Conv2d):
                return result(module._conv_forward(operand(images), weight, module.bias))
            return result(nn.functional.linear(operand(images), weight, module.bias))

        return forward

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.forward = layer(module)
        elif half and isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, __, output: result(output))


@contextmanager
def arithmetic(arm: str) -> Iterator[None]:
    """Train with the arm's arithmetic."""
    if arm not in EMULATED:
        yield
        return
    kind, where = EMULATED[arm]

    class Emulating(WorkingNetworks):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            emulate(self.attacked, kind)
            if where == "everywhere":
                emulate(self.learner, kind)

    step.WorkingNetworks = Emulating  # type: ignore[misc]
    try:
        yield
    finally:
        step.WorkingNetworks = WorkingNetworks  # type: ignore[misc]


def row(arm: str, seed: int, out: Path, *, quick: bool) -> dict[str, Any]:
    folder = out / f"seed{seed}" / arm.replace(" ", "-").replace("*", "-emulated")
    if (earlier := finished(folder)) is not None:
        return earlier
    changes: dict[str, Any] = {
        "seed": seed,
        "evaluation.attacks": ATTACKS,
        "evaluation.curve": [],
        "evaluation.limit": 1000,
        "evaluation.examples": 0,
        **ARMS[arm],
    }
    if quick:
        changes |= {"pretrain.epochs": 1, "prune.epochs": 1, "finetune.epochs": 1, "evaluation.limit": 100}
        changes["data"] = {"kind": "fashion_mnist_mini", "train_size": 1000}
        changes |= {f"{stage}.warmup_epochs": 0 for stage in ("pretrain", "prune", "finetune")}
    values = with_changes(robustcompress.Recipe.preset("default").model_dump(mode="json"), changes)
    with arithmetic(arm):
        result = run(values, folder, ["pretrain", "prune", "finetune", "compact", "evaluate"])
    found = {
        "arm": arm,
        "seed": seed,
        "device": result.report.run.device,
        "measurements": [m.model_dump(mode="json") for m in result.report.measurements],
    }
    return finish(folder, found)


def differences(found: list[dict[str, Any]], arm: str, attack: str) -> list[float]:
    """Return arm minus exact, seed by seed."""
    by_seed = {(item["arm"], item["seed"]): accuracy(item, attack, network=True) for item in found}
    return [value - by_seed["exact", seed] for (name, seed), value in by_seed.items() if name == arm]


def margin(values: list[float]) -> float:
    """Return how far below zero a mean difference may lie."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return max(0.005, 2 * error)


def table(found: list[dict[str, Any]], arms: list[str]) -> str:
    lines = ["| arm | clean | worst case | worst case minus exact | passes |", "|---|---|---|---|---|"]
    for arm in arms:
        group = [item for item in found if item["arm"] == arm]
        cells = [
            spread([accuracy(item, attack, network=True) for item in group]) for attack in ("clean", "worst")
        ]
        values = differences(found, arm, "worst")
        gap = "-" if arm == "exact" else spread(values)
        passes = "-"
        if arm != "exact" and len(values) > 1:
            passes = "yes" if statistics.mean(values) >= -margin(values) else "no"
        lines.append(f"| {arm} | {' | '.join(cells)} | {gap} | {passes} |")
    return "\n".join(lines)


def figures(found: list[dict[str, Any]], arms: list[str]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for arm in arms:
        if arm == "exact":
            continue
        values = differences(found, arm, "worst")
        made.append(
            {
                "name": f"{arm} minus exact, worst case",
                "value": round(statistics.mean(values), 4),
                "target": round(-margin(values), 4) if len(values) > 1 else None,
                "higher_is_better": True,
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few images, under a minute")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=",".join(ARMS), help="by name, with commas; exact is always run")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", action="store_true", help="no table, only the last line")
    args = parser.parse_args()
    out = args.out or Path("runs") / ("benchmark-rounding-quick" if args.quick else "benchmark-rounding")
    seeds = [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]
    chosen = set(args.arms.split(","))
    if unknown := chosen - set(ARMS):
        parser.error(f"unknown arms {sorted(unknown)}; there are {list(ARMS)}")
    arms = [arm for arm in ARMS if arm in chosen or arm == "exact"]
    found = [row(arm, seed, out, quick=args.quick) for seed in seeds for arm in arms]
    if not args.json:
        print(table(found, arms))
    device = ", ".join(sorted({item["device"] for item in found}))
    print(json.dumps({"figures": figures(found, arms), "device": device, "commit": commit()}))


if __name__ == "__main__":
    sys.exit(main())
