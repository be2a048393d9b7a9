"""How long layers of many shapes take in ONNX Runtime: a table, measured once, saved, read elsewhere."""

import platform
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from pydantic import BaseModel, ConfigDict, Field

from robustcompress.errors import ConfigError, StorageError
from robustcompress.storage.atomic import write_bytes

_OPSET, _IR_VERSION, _QUIET = 18, 9, 4
_WARM_UP, _LEAST_CALLS, _SECONDS = 3, 15, 0.02


@dataclass(frozen=True, order=True)
class LayerShape:
    """A convolution or linear layer with one image's input.

    Attributes:
        kind: ``conv`` or ``linear``.
        inputs: Channels taken in, over all groups.
        outputs: Channels put out.
        kernel: Sides of the kernel; empty for a linear layer, as all that follow.
        stride: Along each side.
        padding: At either end of each side.
        dilation: Along each side.
        size: Sides of the input.
        groups: Of a grouped convolution.
        rows: Positions at which a linear layer is applied.
    """

    kind: Literal["conv", "linear"]
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    groups: int = 1
    rows: int = 1

    @property
    def family(self) -> tuple[object, ...]:
        """What layers share that differ in their widths only."""
        depthwise = self.groups > 1
        return (
            self.kind,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.size,
            self.rows,
            depthwise,
        )

    @property
    def work(self) -> int:
        """Products of widths that the time follows, up to the family's own factor."""
        return self.inputs // self.groups * self.outputs


class _Row(BaseModel):
    """One line of a saved table."""

    model_config = ConfigDict(extra="forbid")
    shape: LayerShape
    ms: float = Field(gt=0)


class _Saved(BaseModel):
    """A saved table."""

    model_config = ConfigDict(extra="forbid")
    device: str
    threads: int = Field(ge=1)
    layers: tuple[_Row, ...]


class CostTable:
    """Milliseconds by layer shape, measured on one device.

    Args:
        device: Where they were measured; see :func:`this_device`.
        threads: On which one operator ran.
        milliseconds: Known so far; measured ones are added.
    """

    def __init__(
        self, device: str, threads: int, milliseconds: Mapping[LayerShape, float] | None = None
    ) -> None:
        self.device = device
        self.threads = threads
        self.milliseconds = dict(milliseconds or {})

    @classmethod
    def of_this_device(cls, threads: int) -> "CostTable":
        """Return an empty table that measures here what it is asked for."""
        return cls(this_device(), threads)

    @property
    def is_of_this_device(self) -> bool:
        """Whether what is missing can be measured here."""
        return self.device == this_device()

    def latency_ms(self, shape: LayerShape) -> float:
        """Return how long one layer takes; measured here if it is not in the table yet.

        Of another device's table the nearest shape that differs in widths only is taken, times the ratio of
        their multiply-adds.

        Raises:
            ConfigError: If that has no such shape.
        """
        known = self.milliseconds.get(shape)
        if known is None and self.is_of_this_device:
            known = self.milliseconds[shape] = measure_layer(shape, self.threads)
        return self._from_relatives(shape) if known is None else known

    def _from_relatives(self, shape: LayerShape) -> float:
        relatives = [known for known in self.milliseconds if known.family == shape.family]
        if not relatives:
            raise ConfigError(
                f"the cost table of {self.device!r} has no layer like {shape}. Measure it there: run once on "
                "any machine with the same network, copy the table that the run saves to the device, and "
                "call remeasured() on it there."
            )
        nearest = min(relatives, key=lambda known: abs(np.log(known.work / shape.work)))
        return self.milliseconds[nearest] * shape.work / nearest.work

    def remeasured(self) -> "CostTable":
        """Return a table of the same shapes measured on the device that this runs on."""
        table = CostTable.of_this_device(self.threads)
        for shape in sorted(self.milliseconds):
            table.latency_ms(shape)
        return table

    def write(self, path: Path) -> None:
        """Save the table as JSON."""
        rows = tuple(_Row(shape=shape, ms=self.milliseconds[shape]) for shape in sorted(self.milliseconds))
        saved = _Saved(device=self.device, threads=self.threads, layers=rows)
        write_bytes(path, saved.model_dump_json(indent=1).encode())

    @classmethod
    def read(cls, path: Path) -> "CostTable":
        """Return the table that :meth:`write` saved.

        Raises:
            StorageError: If the file is missing or is no table.
        """
        try:
            saved = _Saved.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{path}: expected a cost table as a run saves it in latency_table.json; "
                f"{type(error).__name__}: {error}."
            ) from error
        return cls(saved.device, saved.threads, {row.shape: row.ms for row in saved.layers})


def this_device() -> str:
    """Return the processor and the runtime whose timings belong together."""
    return f"{_processor()}, onnxruntime {ort.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure_layer(shape: LayerShape, threads: int) -> float:
    """Return the median milliseconds of one call of the layer with its bias and a ReLU, float32."""
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        layer_graph(shape).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    generator = np.random.default_rng(0)
    images = {"images": generator.random(_input_shape(shape), dtype=np.float32)}
    for _ in range(_WARM_UP):
        session.run(None, images)
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < _LEAST_CALLS or time.perf_counter() - began < _SECONDS:
        start = time.perf_counter()
        session.run(None, images)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def layer_graph(shape: LayerShape) -> onnx.ModelProto:
    """Return a network of this one layer, its weights random, and a ReLU, which runtimes fuse with it."""
    generator = np.random.default_rng(0)
    if shape.kind == "conv":
        weight = generator.standard_normal((shape.outputs, shape.inputs // shape.groups, *shape.kernel))
        layer = helper.make_node(
            "Conv",
            ["images", "weight", "bias"],
            ["made"],
            strides=shape.stride,
            pads=[*shape.padding, *shape.padding],
            dilations=shape.dilation,
            group=shape.groups,
        )
    else:
        weight = generator.standard_normal((shape.outputs, shape.inputs))
        layer = helper.make_node("Gemm", ["images", "weight", "bias"], ["made"], transB=1)
    constants = {"weight": weight, "bias": generator.standard_normal(shape.outputs)}
    ends = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, _input_shape(shape)),
        helper.make_tensor_value_info("kept", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(
        [layer, helper.make_node("Relu", ["made"], ["kept"])],
        "layer",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _input_shape(shape: LayerShape) -> tuple[int, ...]:
    return (1, shape.inputs, *shape.size) if shape.kind == "conv" else (shape.rows, shape.inputs)


def total_ms(table: CostTable, shapes: Iterable[LayerShape]) -> float:
    """Return the sum over the layers of one network."""
    return sum(table.latency_ms(shape) for shape in shapes)
