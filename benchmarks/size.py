"""Bytes of every format over the limit, and what a compact file costs when it is loaded and run.

    python benchmarks/size.py [--quick] [--out FOLDER] [--json]

The limit of a network: for each weight of n values of which a fraction 1 - s is kept, n * H2(1 - s) / 8 bytes
for their positions (H2: binary entropy in bits) and the kept values in the format's bits; on both sides the
biases (float32, float16 where values are rounded) and, for whole numbers, a float16 scale for each output
channel. It is what independent positions and unmodelled values need. A file may go below it, for values that
round to zero need not be stored ("of what is left" counts them as removed).

Random masks: resnet18 with random weights and batch normalisation (folded), each layer masked uniformly at
random. Trained: resnet18 on Fashion-MNIST, adversarially (FGSM, eps 0.1), pruned globally by learned scores,
finetuned, dead channels removed, exported, and the file itself attacked (PGD-10). It is trained for a few
epochs on few images: what a mask leaves is real, its accuracy is not the point. The file of the run is there
with its metadata, too. Rows that are finished are kept in --out and not run again.

Speed: the file of 99% against the same weights dense, ONNX Runtime, one thread, batch 1; calls take turns,
CPU-seconds, the lower quartile; and the least of several fresh processes for loading (session creation) and
for peak memory over a process that has only imported the runtime.
"""

import argparse
import io
import json
import lzma
import math
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from common import commit, run
from torch import Tensor, nn

import robustcompress
from robustcompress.export.densify import dense_model
from robustcompress.recipe import with_changes
from robustcompress.storage import numpy_reader
from robustcompress.storage.codecs import all_codecs
from robustcompress.storage.sparse_file import write_tensors

ValueType = Literal["float32", "float16", "int8", "int6", "int4"]
BITS: dict[ValueType, int] = {"float32": 32, "float16": 16, "int8": 8, "int6": 6, "int4": 4}
UNIFORM = (0.9, 0.95, 0.99, 0.999)
TRAINED = (0.95, 0.99)
MOST = {"float32": 1.02, "int8": 1.05}  # over the limit, at 95 and 99%
LEAST = {0.95: 45.0, 0.99: 175.0}  # times smaller than dense float32, int8
LEAST_TRAINED = {0.99: 180.0}
LOADING = """
import sys, time
import onnxruntime
def peak():
    # Of this process alone: what getrusage tells includes its parent before exec.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
before = peak()
begun = time.process_time()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
taken = time.process_time() - begun
print(taken, peak() - before)
"""


def limit_bytes(weights: list[tuple[int, int]], values: ValueType, *, biases: int, rows: int) -> float:
    """Return the limit of a network.

    Args:
        weights: Size and kept values of each weight.
        values: How they are stored.
        biases: How many other values there are.
        rows: Output channels of all weights together.
    """
    total = 0.0
    for size, kept in weights:
        share = kept / size
        if 0 < share < 1:
            total -= size * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
        total += kept * BITS[values] / 8
    whole = values.startswith("int")
    return total + biases * (4 if values == "float32" else 2) + (2 * rows if whole else 0)


def counted(model: onnx.ModelProto) -> tuple[list[tuple[int, int]], int, int]:
    """Return (size, kept) of every weight of a dense model, and how many biases and rows it has."""
    arrays = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    ]
    weights = [array for array in arrays if array.ndim > 1]
    biases = sum(array.size for array in arrays if array.ndim <= 1)
    sizes = [(array.size, int(np.count_nonzero(array))) for array in weights]
    return sizes, biases, sum(len(array) for array in weights)


def masked_resnet18(sparsity: float) -> nn.Module:
    """Return a network whose statistics are not those of a fresh one, so that folding leaves biases."""
    torch.manual_seed(0)
    network = robustcompress.networks.Network.find("resnet18").build().eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_() if module.running_mean is not None else None
                module.running_var.uniform_(0.5, 2) if module.running_var is not None else None
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                gone = torch.randperm(module.weight.numel())[: round(sparsity * module.weight.numel())]
                module.weight.view(-1)[gone] = 0
    return network


def onnx_bytes(network: nn.Module, images: Tensor, **settings: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        robustcompress.formats.Onnx(**settings).write(network, path, images=images, metadata={})
        return path.read_bytes()


def packed(network: nn.Module, images: Tensor, values: ValueType) -> tuple[int, list[tuple[int, int]]]:
    """Return bytes of the format ``safetensors``, and size and stored values of each weight."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        robustcompress.formats.Safetensors(values=values).write(network, path, images=images, metadata={})
        arrays = [array for array in numpy_reader.read(path).values() if array.ndim > 1]
        return path.stat().st_size, [(array.size, int(np.count_nonzero(array))) for array in arrays]


def sparse_initializers(dense: bytes) -> int:
    """Return bytes of the same model with ONNX's own sparse tensors."""
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "dense.onnx", Path(folder) / "sparse.onnx"
        source.write_bytes(dense)
        robustcompress.densify(source, path, style="sparse-initializer")
        return path.stat().st_size


def zipped(data: bytes) -> int:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("model.onnx", data)
    return len(buffer.getvalue())


def packers() -> dict[str, Callable[[bytes], int]]:
    """Return what general programs make of a dense file: zip, and zstd or, without its library, xz."""
    try:
        import zstandard
    except ImportError:
        return {"zip": zipped, "xz": lambda data: len(lzma.compress(data))}
    return {"zip": zipped, "zstd -19": lambda data: len(zstandard.compress(data, 19))}


def random_rows(sparsity: float, *, quick: bool) -> list[dict[str, Any]]:
    """Return the size of each format for uniform random masks."""
    network = masked_resnet18(sparsity)
    images = torch.rand(2, 3, 32, 32)
    dense = onnx_bytes(network, images, style="dense")
    model = onnx.load_from_string(dense)
    weights, biases, rows = counted(model)
    kinds: list[ValueType] = ["float32", "int8"] if quick else list(BITS)
    found: list[dict[str, Any]] = []

    def note(name: str, values: ValueType, size: int, left: list[tuple[int, int]] | None = None) -> None:
        limit = limit_bytes(weights, values, biases=biases, rows=rows)
        of_left = limit_bytes(left or weights, values, biases=biases, rows=rows)
        found.append(
            {
                "sparsity": sparsity,
                "format": name,
                "values": values,
                "bytes": size,
                "over": size / limit,
                "over_left": size / of_left,
                "smaller": len(dense) / size,
            }
        )

    for values in kinds:
        for group in ("net",) if quick else ("net", "layer"):
            data = onnx_bytes(network, images, group=group, values=values)
            left, *_ = counted(dense_model(onnx.load_from_string(data)))
            note(f"compact ONNX, {group}", values, len(data), left)
    tensors = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    for codec in all_codecs():
        note(f"sparse safetensors, {codec.kind}", "float32", len(write_tensors(tensors, codecs=[codec])))
    note("sparse safetensors, smallest", "float32", len(write_tensors(tensors)))
    for values in kinds:
        size, kept = packed(network, images, values)
        note("sparse safetensors, packed", values, size, kept)
    note("sparse initializers", "float32", sparse_initializers(dense))
    for name, pack in packers().items():
        if not quick:
            note(f"dense ONNX, {name}", "float32", pack(dense))
    note("dense ONNX", "float32", len(dense))
    return found


def recipe(sparsity: float, *, quick: bool) -> dict[str, Any]:
    values = robustcompress.Recipe.preset("default").model_dump(mode="json")
    stage = {"optimizer": "adam", "lr": 0.001, "warmup_epochs": 0.2}
    changes: dict[str, Any] = {
        "model": {"kind": "resnet18", "in_channels": 1, "width": 4 if quick else 64},
        "data": {"kind": "fashion_mnist_mini", "train_size": 300 if quick else 1500, "test_size": 100},
        "objective": {"kind": "pgd", "steps": 1},
        "sparsity": sparsity,
        "budget": "global",
        **{f"{name}.{key}": value for name in ("pretrain", "finetune") for key, value in stage.items()},
        "pretrain.epochs": 1 if quick else 3,
        "prune.epochs": 1,
        "finetune.epochs": 1,
        **{f"{name}.batch_size": 32 for name in ("pretrain", "prune", "finetune")},
        "validation.attack": {"kind": "pgd", "steps": 1},
        "export": [{"kind": "onnx", "values": "int8"}],
        "evaluation.attacks": [{"kind": "pgd", "steps": 10}],
        "evaluation.curve": [],
        "evaluation.alarms": False,
        "evaluation.examples": 0,
    }
    return with_changes(values, changes)


def trained_rows(sparsity: float, out: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Return the size of each file of a trained network, and what it is worth under attack."""
    done = out / f"trained-{sparsity:g}.json"
    if done.exists():
        loaded: list[dict[str, Any]] = json.loads(done.read_text())
        return loaded
    values = recipe(sparsity, quick=quick)
    # One dense network for all levels: a folder is only gone on with by the recipe that it was made by.
    run(recipe(TRAINED[0], quick=quick), out / "pretrained", ["pretrain"])
    pretrained = out / "pretrained" / "stages" / "pretrain"
    dense = len(
        onnx_bytes(robustcompress.load(pretrained).cpu().eval(), torch.rand(2, 1, 28, 28), style="dense")
    )
    stages = ["prune", "finetune", "compact", "export", "evaluate"]
    changes = {"weights": str(pretrained)}
    result = run(with_changes(values, changes), out / f"trained-{sparsity:g}", stages)
    network, images = result.network.cpu().eval(), torch.rand(2, 1, 28, 28)
    weights, biases, rows = counted(onnx.load_from_string(onnx_bytes(network, images, style="dense")))
    (file,) = result.files
    written: list[tuple[str, ValueType, bytes]] = [
        ("compact ONNX, net", "float32", onnx_bytes(network, images)),
        ("compact ONNX, net", "int8", onnx_bytes(network, images, values="int8")),
        ("the same with the run's metadata", "int8", file.path.read_bytes()),
    ]
    found: list[dict[str, Any]] = []
    for name, kind, data in written:
        left, *_ = counted(dense_model(onnx.load_from_string(data)))
        found.append(
            {
                "sparsity": sparsity,
                "format": name,
                "values": kind,
                "bytes": len(data),
                "over": len(data) / limit_bytes(weights, kind, biases=biases, rows=rows),
                "over_left": len(data) / limit_bytes(left, kind, biases=biases, rows=rows),
                "smaller": dense / len(data),
            }
        )
    assert result.report is not None
    for row in result.report.measurements:
        if row.subject != "network" and row.attack in ("clean", "worst case"):
            found[-1][row.attack] = min(row.accuracy, found[-1].get(row.attack, 1.0))
    done.write_text(json.dumps(found))
    return found


def speed(*, quick: bool) -> dict[str, dict[str, float]]:
    """Return latency, load time and peak memory of the same weights as different files."""
    network, images = masked_resnet18(0.99), torch.rand(1, 3, 32, 32)
    kinds: dict[str, dict[str, str]] = {
        "dense": {"style": "dense"},
        "compact, net": {"group": "net"},
        **({} if quick else {"compact, layer": {"group": "layer"}}),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{place}.onnx" for place, name in enumerate(kinds)}
        for name, path in paths.items():
            path.write_bytes(onnx_bytes(network, images, **kinds[name]))
        calls: dict[str, list[float]] = {name: [] for name in kinds}
        loads: dict[str, list[float]] = {name: [] for name in kinds}
        peaks: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(2 if quick else 7):
            for name, path in paths.items():
                done = subprocess.run(
                    [sys.executable, "-c", LOADING, str(path)], capture_output=True, text=True, check=True
                )
                taken, peak = done.stdout.split()
                loads[name].append(float(taken))
                peaks[name].append(float(peak))
        # Where a session's weights happen to lie moves its latency by percents: several of each.
        for _ in range(2 if quick else 8):
            sessions = {name: robustcompress.OnnxSession(path, threads=1) for name, path in paths.items()}
            for number in range(10 if quick else 60):
                for name, session in sessions.items():
                    begun = time.process_time()
                    session(images)
                    if number >= 3:
                        calls[name].append(time.process_time() - begun)
    return {
        name: {
            "ms": 1000 * float(np.quantile(calls[name], 0.25)),
            "load_ms": 1000 * min(loads[name]),
            "peak_mib": statistics.median(peaks[name]),
        }
        for name in kinds
    }


def table(found: list[dict[str, Any]]) -> str:
    heads = ["sparsity", "format", "values", "bytes", "over the limit", "over that of what is left"]
    heads += ["times smaller"]
    accuracies = [name for name in ("clean", "worst case") if any(name in row for row in found)]
    heads += [f"accuracy, {name}" for name in accuracies]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in found:
        cells = [f"{row['sparsity']:.1%}", row["format"], row["values"], f"{row['bytes']:,}"]
        cells += [f"{row['over']:.3f}", f"{row['over_left']:.3f}", f"{row['smaller']:.1f}"]
        cells += [f"{row[name]:.1%}" if name in row else "" for name in accuracies]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speed_table(found: dict[str, dict[str, float]]) -> str:
    lines = [
        "| file, 99% | call, ms | over dense | load, ms | over dense | peak memory, MiB |",
        "|---" * 6 + "|",
    ]
    dense = found["dense"]
    lines += [
        f"| {name} | {row['ms']:.2f} | {row['ms'] / dense['ms']:.3f} | {row['load_ms']:.0f} | "
        f"{row['load_ms'] / dense['load_ms']:.2f} | {row['peak_mib']:.0f} |"
        for name, row in found.items()
    ]
    return "\n".join(lines)


def figures(
    masked: list[dict[str, Any]],
    trained: list[dict[str, Any]],
    speeds: dict[str, dict[str, float]],
    *,
    quick: bool,
) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def add(name: str, value: float, target: float | None, *, higher: bool) -> None:
        made.append({"name": name, "value": round(value, 4), "target": target, "higher_is_better": higher})

    for row in masked:
        if row["format"] != "compact ONNX, net" or row["sparsity"] not in LEAST:
            continue
        at = f"random masks, {row['sparsity']:.0%}, {row['values']}"
        if row["values"] in MOST:
            add(f"{at}: file over limit", row["over"], MOST[row["values"]], higher=False)
        if row["values"] == "int8":
            add(f"{at}: dense float32 file over file", row["smaller"], LEAST[row["sparsity"]], higher=True)
    for row in trained:
        if row["values"] == "int8":
            least = None if quick else LEAST_TRAINED.get(row["sparsity"])
            name = f"trained, {row['sparsity']:.0%}, int8, {row['format']}: dense float32 file over file"
            add(name, row["smaller"], least, higher=True)
    dense, compact = speeds["dense"], speeds["compact, net"]
    add("latency over that of dense", compact["ms"] / dense["ms"], None if quick else 1.03, higher=False)
    add("load time over that of dense", compact["load_ms"] / dense["load_ms"], None, higher=False)
    add("peak memory of loading, MiB", compact["peak_mib"], None, higher=False)
    add("peak memory of loading, MiB, dense", dense["peak_mib"], None, higher=False)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="99% and two kinds of values, under a minute")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", action="store_true", help="no tables, only the last line")
    args = parser.parse_args()
    out = args.out or Path("runs") / ("benchmark-size-quick" if args.quick else "benchmark-size")
    out.mkdir(parents=True, exist_ok=True)
    masked = [
        row for level in ((0.99,) if args.quick else UNIFORM) for row in random_rows(level, quick=args.quick)
    ]
    trained = [
        row
        for level in (TRAINED[1:] if args.quick else TRAINED)
        for row in trained_rows(level, out, quick=args.quick)
    ]
    speeds = speed(quick=args.quick)
    if not args.json:
        print("\n\n".join([table(masked), table(trained), speed_table(speeds)]), end="\n\n")
    found = figures(masked, trained, speeds, quick=args.quick)
    print(json.dumps({"figures": found, "device": "cpu", "commit": commit()}))


if __name__ == "__main__":
    sys.exit(main())
