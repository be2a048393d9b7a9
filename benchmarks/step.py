"""A training step against the published procedure and against the least work that it can be.

    python benchmarks/step.py [--quick] [--json]
    python benchmarks/step.py --floor        the least work of each network's step, nothing measured
    python benchmarks/step.py --scaling      cost against network, batch, inner steps and sparsity

Steps of HYDRA's prune stage (scores learn) and of finetuning (kept weights learn) under TRADES-10, measured
in turns on the same weights, scores, images and noise: CPU-seconds of one thread, or CUDA events. ``paper``
is ``paper_step.py``. ``exact`` is the default settings; its gradient is compared with the paper's under
``bn_updates: hydra``, where batch statistics move in the same order. ``fast`` uses settings that change
rounding: folding, channels last and ``torch.compile``, and bfloat16 where the processor has instructions for
it. The floor's time is its operations over the rate of a large float32 matrix product, measured in turns with
the steps.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from common import commit, seconds
from paper_step import PaperStep
from torch import Tensor, nn

from robustcompress.graph.floor import Passes, StepFloor, step_floor
from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Pattern
from robustcompress.pruning.scores import Score
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import generator_for
from robustcompress.training.loop import float32_math
from robustcompress.training.objectives import Moment, Objective
from robustcompress.training.settings import StepSettings
from robustcompress.training.step import Precision, Stepper
from robustcompress.zoo.networks import Network

SHAPES = {
    "small_cnn": (1, 28, 28),
    "resnet18": (3, 32, 32),
    "wide_resnet_28_4": (3, 32, 32),
    "vgg16_bn": (3, 32, 32),
}
EPS, SEED = 8 / 255, 0
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Case(NamedTuple):
    """What a step is made of."""

    network: str
    batch: int
    steps: int
    prune: bool = True
    sparsity: float = 0.9

    def __str__(self) -> str:
        stage = "prune" if self.prune else "finetune"
        return f"{self.network}, TRADES-{self.steps}, batch {self.batch}, {stage}"


class Arm(NamedTuple):
    """One way to compute a step: run it, and look at the gradients that it left."""

    run: Callable[[], float]
    gradients: Callable[[], list[Tensor]]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepared(case: Case) -> tuple[nn.Module, Masking, Tensor, Tensor]:
    """Return the network, its scores and a batch, the same for every arm."""
    torch.manual_seed(SEED)
    network = Network.find(case.network).build().to(device())
    generator = torch.Generator().manual_seed(SEED)
    # Away from 0 and 1, where the two procedures clip the attack's start differently.
    images = torch.rand(case.batch, *SHAPES[case.network], generator=generator) * 0.98 + 0.01
    labels = torch.randint(10, (case.batch,), generator=generator)
    sites = Pattern.find("unstructured").plan(network, images[:2].to(device()), ()).sites
    masking = Masking(
        sites,
        score=Score.find("learned"),
        budget=Budget.find("uniform"),
        sparsity=case.sparsity,
        parameters=dict(network.named_parameters()),
    ).to(device())
    masking.refresh()
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not case.prune or isinstance(module, NORMS))
    if not case.prune:
        masking.freeze()
    return network.train(), masking, images.to(device()), labels.to(device())


def paper(case: Case) -> Arm:
    network, masking, images, labels = prepared(case)
    names = [site.name for site in masking.sites]
    step = PaperStep(
        network,
        dict(zip(names, masking.scores, strict=True)),
        dict(zip(names, masking.removed, strict=True)),
        eps=EPS,
        steps=case.steps,
        step_size=2.5 * EPS / case.steps,
        beta=6.0,
        lr=0.1,
    )
    count = 0

    def run() -> float:
        nonlocal count
        generator = generator_for(device(), SEED, "step", count)
        count += 1
        noise = torch.randn(images.shape, generator=generator, device=device())
        with float32_math("fp32"):
            return step.step(images, labels, noise)

    return Arm(run, lambda: learnt_gradients(step.optimizer))


def ours(case: Case, *, precision: Precision = "fp32", **settings: Any) -> Arm:
    network, masking, images, labels = prepared(case)
    learnt = [*masking.learnable(), *(p for p in network.parameters() if p.requires_grad)]
    optimizer = torch.optim.SGD(learnt, lr=0.1, momentum=0.9)
    stepper = Stepper(
        network,
        masking,
        objective=Objective.find({"kind": "trades", "steps": case.steps}),
        threat=Threat(norm="linf", eps=EPS),
        optimizer=optimizer,
        device=device(),
        precision=precision,
        clip_gradient=None,
        seed=SEED,
        settings=StepSettings(**settings),
    )
    count = 0

    def run() -> float:
        nonlocal count
        count += 1
        with float32_math(precision):
            return stepper.step(images, labels, Moment(0, 1, count - 1, 1000))

    return Arm(run, lambda: learnt_gradients(optimizer))


def learnt_gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [p.grad.detach().clone() for p in parameters if p.grad is not None]


def has_bf16() -> bool:
    """Return whether the device multiplies bfloat16 matrices in hardware."""
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    with open("/proc/cpuinfo") as text:
        return "avx512_bf16" in (flags := text.read()) or "amx_bf16" in flags


def arms(case: Case) -> dict[str, Arm]:
    fast: dict[str, Any] = {"fold_norms": True, "memory_format": "channels_last", "compile": True}
    if device().type == "cuda":
        return {
            "paper": paper(case),
            "exact": ours(case),
            "tf32": ours(case, precision="tf32", memory_format="channels_last"),
            "fast": ours(case, precision="bf16", **fast),
        }
    if has_bf16():
        fast["attack_precision"] = "bf16"
    return {"paper": paper(case), "exact": ours(case), "fast": ours(case, **fast)}


def matrix_rate(dtype: torch.dtype = torch.float32, *, tf32: bool = False) -> float:
    """Return operations a second of a large matrix product, best of a few."""
    size = 8192 if device().type == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
    with float32_math("tf32" if tf32 else "fp32"):
        torch.mm(left, right)
        return 2 * size**3 / min(seconds(lambda: torch.mm(left, right), device()) for _ in range(5))


def floor_of(case: Case) -> StepFloor:
    network, _, images, _ = prepared(case)
    return step_floor(network, images[:2], Passes.trades(case.steps), batch=case.batch)


def measured(case: Case, *, repeats: int) -> tuple[dict[str, float], float]:
    """Return the median seconds of each arm, and the floor's, from steps of all arms in turn."""
    chosen = arms(case)
    times: dict[str, list[float]] = {name: [] for name in chosen}
    rates: list[float] = []
    for name, arm in chosen.items():
        if name != "paper" or device().type == "cuda":
            arm.run()
    for _ in range(repeats):
        for name, arm in chosen.items():
            times[name].append(seconds(arm.run, device()))
        rates.append(matrix_rate())
    found = {name: statistics.median(values) for name, values in times.items()}
    return found, floor_of(case).flops / max(rates)


def gradient_difference(case: Case) -> float:
    """Return the length of (ours - paper's) over the paper's, over everything that learns, after one step."""
    theirs, exact = paper(case), ours(case, bn_updates="hydra")
    theirs.run()
    exact.run()
    pairs = list(zip(theirs.gradients(), exact.gradients(), strict=True))
    gap = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return float((gap / sum(float(a.double().square().sum()) for a, _ in pairs)) ** 0.5)


def figure(name: str, value: float, target: float | None = None, *, higher: bool = True) -> dict[str, Any]:
    return {"name": name, "value": float(f"{value:.4g}"), "target": target, "higher_is_better": higher}


def comparison(case: Case, *, repeats: int, targets: bool) -> list[dict[str, Any]]:
    found, floor = measured(case, repeats=repeats)
    on_gpu = device().type == "cuda"
    made = [
        figure(
            f"{case}: paper over exact",
            found["paper"] / found["exact"],
            (8.0 if on_gpu else 5.5) if targets else None,
        ),
        figure(
            f"{case}: paper over fast",
            found["paper"] / found["fast"],
            10.0 if targets and not on_gpu else None,
        ),
        figure(f"{case}: floor over exact", floor / found["exact"]),
        figure(f"{case}: images per second, exact", case.batch / found["exact"]),
        figure(f"{case}: images per second, fast", case.batch / found["fast"]),
    ]
    if not on_gpu:  # on a GPU fast multiplies bfloat16, and is held against that rate
        made.append(figure(f"{case}: floor over fast", floor / found["fast"]))
    else:
        flops = floor_of(case).flops
        share = flops / found["fast"] / matrix_rate(torch.bfloat16)
        made.append(figure(f"{case}: share of the bfloat16 matrix rate", share, 0.4 if targets else None))
        made.append(figure(f"{case}: paper over tf32", found["paper"] / found["tf32"]))
    print(
        f"{case}: " + ", ".join(f"{n} {s:.3g} s" for n, s in found.items()) + f", floor {floor:.3g} s",
        file=sys.stderr,
    )
    return made


def floors() -> str:
    lines = [
        "| network | batch | objective | forward | to images | to weights | GFLOP | least GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ("small_cnn", "resnet18", "wide_resnet_28_4"):
        for kind, passes in (("PGD-10", Passes.pgd(10)), ("TRADES-10", Passes.trades(10))):
            network, _, images, _ = prepared(Case(name, 2, 10))
            found = step_floor(network, images, passes, batch=128)
            counts = f"{passes.forward} | {passes.to_images} | {passes.to_weights}"
            lines.append(
                f"| {name} | 128 | {kind} | {counts} | {found.flops / 1e9:,.4g} | {found.bytes / 1e9:.3g} |"
            )
    return "\n".join(lines)


def scaling(*, repeats: int) -> str:
    base = Case("resnet18", 8, 5)
    cases = [
        *(base._replace(network=name) for name in SHAPES),
        *(base._replace(batch=batch) for batch in (2, 32)),
        *(base._replace(steps=steps) for steps in (1, 10, 20)),
        *(base._replace(sparsity=sparsity) for sparsity in (0.5, 0.99)),
        base._replace(prune=False),
    ]
    lines = [
        "| network | batch | inner steps | sparsity | stage | seconds a step | ms an image | floor over it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        arm = ours(case)
        arm.run()
        spent = statistics.median(seconds(arm.run, device()) for _ in range(repeats))
        floor = floor_of(case).flops / matrix_rate()
        stage = "prune" if case.prune else "finetune"
        lines.append(
            f"| {case.network} | {case.batch} | {case.steps} | {case.sparsity:.0%} | {stage} | {spent:.3g} | "
            f"{1000 * spent / case.batch:.3g} | {floor / spent:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a small network and few inner steps, under a minute"
    )
    parser.add_argument("--json", action="store_true", help="only the last line on stdout")
    parser.add_argument(
        "--floor", action="store_true", help="print the least work of steps and measure nothing"
    )
    parser.add_argument("--scaling", action="store_true", help="measure cost against size, and nothing else")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.floor:
        print(floors())
        return
    if args.scaling:
        print(scaling(repeats=args.repeats))
        return
    on_gpu = device().type == "cuda"
    if args.quick:
        cases = [Case("small_cnn", 32, 5)]
    elif on_gpu:
        cases = [
            Case(name, batch, 10, prune)
            for name in ("resnet18", "wide_resnet_28_4")
            for batch in (256, 512, 1024)
            for prune in (True, False)
        ]
    else:
        cases = [Case("resnet18", 32, 10, prune) for prune in (True, False)]
    made: list[dict[str, Any]] = []
    for case in cases:
        made += comparison(case, repeats=1 if args.quick else args.repeats, targets=not args.quick)
    for case in cases[:1] if on_gpu else cases:
        gap = gradient_difference(case)
        made.append(figure(f"{case}: gradient, ours against paper's", gap, 1e-5, higher=False))
    if not args.json:
        print("\n".join(f"{item['value']:>10.4g}  {item['name']}" for item in made))
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    print(json.dumps({"figures": made, "device": name, "commit": commit()}))


if __name__ == "__main__":
    sys.exit(main())
