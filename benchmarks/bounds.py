"""What bounds cost: intervals against a forward pass, a CROWN-IBP step against its floor.

    python benchmarks/bounds.py [--quick] [--json]

CPU-seconds on one thread (GPU: events), medians of interleaved runs, float32.

The floor of a CROWN-IBP step counts the multiply-adds that its mathematics needs, at the rate of a large
matrix product: with F those of a forward pass and C classes, 2 F for centre and radius, (C - 1) F for the
linear functions on their way back, and twice as much again for the gradients of all that; but for the images,
which need none in the forward half. "Products alone" replays the convolutions and matrix products that one
step calls, with nothing in between: what is left between it and the step is elementwise work.
"""

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import commit, seconds
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import robustcompress
from robustcompress.graph.cost import count_macs
from robustcompress.robustness.bounds.crown import crown_ibp_margins
from robustcompress.robustness.bounds.interval import interval_margins, propagate
from robustcompress.robustness.bounds.tracing import trace_network

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRODUCTS = ("convolution", "convolution_backward", "mm", "bmm", "addmm")


class Case(NamedTuple):
    """A network and a batch."""

    name: str
    network: dict[str, Any]
    images: tuple[int, int, int, int]
    step_batch: int  # of the CROWN-IBP step, which takes many times the memory


CASES = (
    Case("small_cnn", {"kind": "small_cnn", "batch_norm": False}, (128, 1, 28, 28), 128),
    Case("small_cnn with batch norm", {"kind": "small_cnn"}, (128, 1, 28, 28), 128),
    Case("resnet18", {"kind": "resnet18"}, (16, 3, 32, 32), 4),
)


class Products(TorchDispatchMode):
    """Keeps every convolution and matrix product that runs below it, to run them again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Callable[[], object]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func.overloadpacket.__name__ in PRODUCTS:
            self.calls.append(lambda: func(*args, **given))
        return func(*args, **given)


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, DEVICE))
    return {name: statistics.median(values) for name, values in times.items()}


def matrix_product() -> Callable[[], Tensor]:
    size = 8192 if DEVICE.type == "cuda" else 1024
    left, right = torch.randn(size, size, device=DEVICE), torch.randn(size, size, device=DEVICE)
    run = lambda: left @ right  # noqa: E731  # measured by name
    run.flops = 2 * size**3  # type: ignore[attr-defined]
    return run


def measured(case: Case, repeats: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = robustcompress.networks.Network.find(case.network).build().to(DEVICE)
    images = torch.rand(case.images, device=DEVICE)
    threat = robustcompress.Threat(eps=0.01)
    for _ in range(3):  # statistics that fit
        model(images)
    evaluated = copy.deepcopy(model).eval()
    traced = trace_network(evaluated)
    labels = evaluated(images).argmax(1)
    classes = 10

    def forward() -> object:
        with torch.no_grad():
            return evaluated(images)

    def interval() -> object:
        with torch.no_grad():
            return interval_margins(propagate(traced, {}, *threat.box(images)), labels)

    few, some = images[: case.step_batch], labels[: case.step_batch]

    def step() -> object:
        evaluated.zero_grad()
        bounds = crown_ibp_margins(propagate(traced, {}, *threat.box(few)), some)
        return F.cross_entropy(-bounds, some).backward()

    def clean_step() -> object:
        evaluated.zero_grad()
        return F.cross_entropy(evaluated(few), some).backward()

    with Products() as products:
        step()
    gemm = matrix_product()
    found = interleaved(
        {
            "forward": forward,
            "interval": interval,
            "clean step": clean_step,
            "step": step,
            "products": lambda: [call() for call in products.calls],
            "gemm": gemm,
        },
        repeats,
    )
    rate = gemm.flops / found["gemm"]  # type: ignore[attr-defined]
    macs = [cost.macs for cost in count_macs(evaluated, images[:2]).values()]
    flops = 2 * case.step_batch * (3 * (classes + 1) * sum(macs) - 2 * macs[0])
    shown = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in found.items())
    print(f"{case.name}: {shown}, floor {flops / rate * 1e3:.1f} ms", file=sys.stderr)
    return [
        figure(
            f"{case.name}: interval bounds over forward", found["interval"] / found["forward"], 3.0, False
        ),
        figure(
            f"{case.name}: CROWN-IBP step over clean step", found["step"] / found["clean step"], None, False
        ),
        figure(f"{case.name}: products alone over CROWN-IBP step", found["products"] / found["step"]),
        figure(f"{case.name}: floor over CROWN-IBP step", flops / rate / found["step"]),
    ]


def figure(name: str, value: float, target: float | None = None, higher: bool = True) -> dict[str, Any]:
    return {"name": name, "value": float(f"{value:.3g}"), "target": target, "higher_is_better": higher}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small networks only, few repeats")
    parser.add_argument("--json", action="store_true", help="no table, only the last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = CASES[:2] if args.quick else CASES
    figures = [item for case in cases for item in measured(case, 5 if args.quick else 15)]
    if not args.json:
        print("| figure | value | target |\n|---|---|---|")
        for item in figures:
            print(f"| {item['name']} | {item['value']} | {item['target'] or ''} |")
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    print(json.dumps({"figures": figures, "device": device, "commit": commit()}))


if __name__ == "__main__":
    main()
