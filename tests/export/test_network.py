"""A network read back from a file computes what the file does, with the network's gradients and bounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from robustcompress.errors import ExportError, StorageError
from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.network import read_network
from robustcompress.export.session import OnnxSession
from robustcompress.robustness.bounds.crown import crown_ibp_margins
from robustcompress.robustness.bounds.interval import interval_margins, propagate
from robustcompress.robustness.bounds.tracing import trace_network
from robustcompress.robustness.threat import Threat
from robustcompress.zoo.networks import Network
from tests.pipeline.conftest import Residual

Array = np.ndarray[Any, Any]
ZOO: dict[str, dict[str, Any]] = {
    "small_cnn": {"kind": "small_cnn", "widths": [4, 6], "hidden": 8},
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network with random weights and statistics, half of its weights zero, and four images."""
    torch.manual_seed(0)
    made = Residual() if name == "residual" else Network.find(ZOO[name]).build()
    shape = {"small_cnn": (1, 28, 28), "residual": (1, 9, 9)}[name]
    images = torch.rand(4, *shape)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_((torch.rand_like(parameter) < 0.5) * 2**0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    made(images)  # moves the statistics
    return made.eval(), images


@pytest.mark.parametrize(
    ("name", "style"), [("small_cnn", "compact"), ("residual", "compact"), ("residual", "dense")]
)
def test_a_file_reads_back_as_its_network_with_its_gradients_and_bounds(
    name: str, style: str, tmp_path: Path
) -> None:
    model, images = network(name)
    path = tmp_path / "model.onnx"
    Onnx.model_validate({"style": style}).write(model, path, images=images, metadata={})
    read = read_network(path)
    for batch in (images, images[:1]):
        torch.testing.assert_close(read(batch), OnnxSession(path)(batch), atol=1e-5, rtol=1e-5)
    assert not read.training
    assert not list(read.parameters())

    def gradient(of: nn.Module) -> Tensor:
        moved = images.clone().requires_grad_()
        (found,) = torch.autograd.grad(of(moved).square().sum(), moved)
        return found

    expected = gradient(model)
    assert float((gradient(read) - expected).norm() / expected.norm()) < 1e-4
    box, labels = Threat(eps=0.01).box(images.double()), model(images).argmax(1)
    for margins in (interval_margins, crown_ibp_margins):
        found, exact = (margins(propagate(trace_network(each), {}, *box), labels) for each in (read, model))
        torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)


# --- Graphs by hand ---

FLOAT = TensorProto.FLOAT


def model_of(
    nodes: Sequence[NodeProto],
    constants: dict[str, Array],
    *,
    shape: Sequence[int | str] = ("batch", 3, 8, 8),
    opset: int = 18,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def arrays(**shapes: tuple[int, ...]) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def number(value: float) -> Array:
    return np.array(value, np.float32)


def node(kind: str, *inputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, list(inputs), ["z"], **attributes)


PLANE = ("batch", 3, 8, 8)
FLAT = ("batch", 12)
ONE: list[tuple[str, Sequence[int | str], NodeProto, dict[str, Array]]] = [
    ("conv", PLANE, node("Conv", "x", "w", "b"), arrays(w=(5, 3, 3, 3), b=(5,))),
    (
        "conv grouped, strided, dilated",
        PLANE,
        node("Conv", "x", "w", group=3, strides=[2, 1], dilations=[1, 2], pads=[1, 2, 1, 2]),
        arrays(w=(6, 1, 3, 3)),
    ),
    ("conv, sides padded apart", PLANE, node("Conv", "x", "w", pads=[0, 1, 2, 0]), arrays(w=(2, 3, 2, 3))),
    ("conv valid", PLANE, node("Conv", "x", "w", auto_pad="VALID"), arrays(w=(2, 3, 2, 3))),
    ("max pool", PLANE, node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 0]), {}),
    ("max pool, stride left out", PLANE, node("MaxPool", "x", kernel_shape=[2, 2]), {}),
    ("max pool, dilated", PLANE, node("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 3]), {}),
    ("max pool, ceil", PLANE, node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), {}),
    ("average pool", PLANE, node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), {}),
    (
        "average pool, counting the pads",
        PLANE,
        node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, strides=[2, 2]),
        {},
    ),
    ("global average pool", PLANE, node("GlobalAveragePool", "x"), {}),
    ("mean, axes as input", PLANE, node("ReduceMean", "x", "axes", keepdims=0), {"axes": ints(-1, -2)}),
    ("relu", PLANE, node("Relu", "x"), {}),
    ("leaky relu", PLANE, node("LeakyRelu", "x"), {}),
    ("leaky relu, steep", PLANE, node("LeakyRelu", "x", alpha=0.3), {}),
    ("clip", PLANE, node("Clip", "x", "low", "high"), {"low": number(0.2), "high": number(0.7)}),
    ("clip, upper end", PLANE, node("Clip", "x", "", "high"), {"high": number(0.7)}),
    ("sigmoid", PLANE, node("Sigmoid", "x"), {}),
    ("tanh", PLANE, node("Tanh", "x"), {}),
    ("neg", PLANE, node("Neg", "x"), {}),
    ("identity", PLANE, node("Identity", "x"), {}),
    ("dropout", PLANE, node("Dropout", "x"), {}),
    ("cast", PLANE, node("Cast", "x", to=FLOAT), {}),
    ("add", PLANE, node("Add", "c", "x"), arrays(c=(3, 1, 1))),
    ("sub", PLANE, node("Sub", "c", "x"), arrays(c=(1, 3, 1, 8))),
    ("mul", PLANE, node("Mul", "x", "c"), arrays(c=())),
    ("div", PLANE, node("Div", "x", "c"), arrays(c=(8,))),
    ("square", PLANE, node("Mul", "x", "x"), {}),
    (
        "batch normalisation",
        PLANE,
        node("BatchNormalization", "x", "s", "b", "m", "v", epsilon=0.01),
        arrays(s=(3,), b=(3,), m=(3,)) | {"v": np.array([0.5, 1.0, 2.0], np.float32)},
    ),
    (
        "batch normalisation of features",
        FLAT,
        node("BatchNormalization", "x", "s", "b", "m", "v"),
        arrays(s=(12,), b=(12,), m=(12,)) | {"v": np.linspace(0.5, 2, 12, dtype=np.float32)},
    ),
    ("gemm", FLAT, node("Gemm", "x", "w", "b"), arrays(w=(12, 5), b=(5,))),
    (
        "gemm, scaled and transposed",
        FLAT,
        node("Gemm", "x", "w", "b", transB=1, alpha=0.5, beta=2.0),
        arrays(w=(5, 12), b=(1, 5)),
    ),
    ("gemm, one bias for all", FLAT, node("Gemm", "x", "w", "b"), arrays(w=(12, 5), b=(1,))),
    ("matmul", FLAT, node("MatMul", "x", "w"), arrays(w=(12, 5))),
    ("softmax", FLAT, node("Softmax", "x"), {}),
    ("flatten", PLANE, node("Flatten", "x"), {}),
    ("flatten from behind", PLANE, node("Flatten", "x", axis=-3), {}),
    ("reshape", PLANE, node("Reshape", "x", "s"), {"s": ints(-1, 192)}),
    ("reshape, zeros copy", PLANE, node("Reshape", "x", "s"), {"s": ints(0, 0, -1)}),
    ("squeeze", ("batch", 1, 4, 1), node("Squeeze", "x", "a"), {"a": ints(1, -1)}),
    ("unsqueeze", FLAT, node("Unsqueeze", "x", "a"), {"a": ints(-1, 1)}),
    ("transpose", PLANE, node("Transpose", "x", perm=[0, 2, 3, 1]), {}),
    ("concat", PLANE, node("Concat", "x", "x", axis=-3), {}),
    ("pad", PLANE, node("Pad", "x", "p", "v"), {"p": ints(0, 0, 1, 2, 0, 0, 3, 0), "v": number(0.5)}),
]


@pytest.mark.parametrize(
    ("shape", "operation", "constants"), [case[1:] for case in ONE], ids=[case[0] for case in ONE]
)
def test_every_operator_computes_what_onnx_runtime_does(
    shape: Sequence[int | str], operation: NodeProto, constants: dict[str, Array]
) -> None:
    read, expected, images = both(model_of([operation], constants, shape=shape), shape)
    torch.testing.assert_close(read(images), expected, atol=1e-5, rtol=1e-5)


def both(model: ModelProto, shape: Sequence[int | str]) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the network of a graph that ends in ``z``, what ONNX Runtime makes of some images, and these."""
    import onnxruntime

    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))
    sizes = [size if isinstance(size, int) else 3 for size in shape]
    images = torch.rand(sizes, generator=torch.Generator().manual_seed(0))
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": images.numpy()})
    return read_network(data), torch.from_numpy(np.asarray(expected)), images


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 20])
def test_axes_and_limits_are_read_in_every_opset(opset: int) -> None:
    averaged = helper.make_node("ReduceMean", ["x", "both"], ["m"])
    if opset < 18:
        averaged = helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3])
    squeezed = helper.make_node("Squeeze", ["m", "both"], ["f"])
    if opset < 13:
        squeezed = helper.make_node("Squeeze", ["m"], ["f"], axes=[2, 3])
    clipped = helper.make_node("Clip", ["f", "low"], ["c"])
    nodes = [averaged, squeezed, clipped, helper.make_node("Softmax", ["c"], ["z"])]
    constants = {"both": ints(2, 3), "low": np.array(0.49, np.float32)}
    read, expected, images = both(model_of(nodes, constants, opset=opset), PLANE)
    torch.testing.assert_close(read(images), expected, atol=1e-6, rtol=1e-5)


def test_what_depends_on_constants_alone_is_computed_once() -> None:
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(arrays(k=(4, 12))["k"])),
        helper.make_node("Transpose", ["k"], ["t"]),
        helper.make_node("Relu", ["t"], ["w"]),
        node("MatMul", "x", "w"),
    ]
    read, expected, images = both(model_of(nodes, {}, shape=FLAT), FLAT)
    torch.testing.assert_close(read(images), expected)
    assert [tuple(buffer.shape) for buffer in read.buffers()] == [(4, 12)]


REFUSED: list[tuple[str, NodeProto, dict[str, Array]]] = [
    ("Einsum.: this operator is not understood", node("Einsum", "x", equation="abcd->abc"), {}),
    ("its auto_pad is 'SAME_UPPER'", node("Conv", "x", "w", auto_pad="SAME_UPPER"), arrays(w=(2, 3, 3, 3))),
    ("its input 1 depends on the images", node("Conv", "x", "x"), {}),
    ("windows have 1 dimensions", node("MaxPool", "x", kernel_shape=[2]), {}),
    ("pads .* differ", node("MaxPool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1]), {}),
    ("flattens from axis 2", node("Flatten", "x", axis=2), {}),
    ("averages over everything", node("ReduceMean", "x"), {}),
    (
        "training mode",
        node("BatchNormalization", "x", *"sbmv", training_mode=1),
        arrays(s=(3,), b=(3,), m=(3,), v=(3,)),
    ),
    ("another type than float32", node("Cast", "x", to=TensorProto.INT64), {}),
    ("mode is 'reflect'", node("Pad", "x", "p", mode="reflect"), {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}),
    ("second factor has 3 dimensions", node("MatMul", "x", "w"), arrays(w=(3, 8, 2))),
    ("its axes are not given", node("Squeeze", "x"), {}),
    ("nothing makes its input 'nowhere'", node("Add", "x", "nowhere"), {}),
    ("of domain 'evil'", helper.make_node("Relu", ["x"], ["z"], domain="evil"), {}),
    ("does not depend on the images", node("Relu", "w"), arrays(w=(2, 2))),
    ("transposes the images' side", node("Gemm", "x", "w", transA=1), arrays(w=(3, 2))),
]


@pytest.mark.parametrize(("message", "operation", "constants"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_is_not_understood_is_named(
    message: str, operation: NodeProto, constants: dict[str, Array]
) -> None:
    model = model_of([operation], constants)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))
    with pytest.raises(ExportError, match=message):
        read_network(model.SerializeToString())


def test_a_graph_of_two_inputs_is_refused() -> None:
    model = model_of([node("Relu", "x")], {})
    model.graph.input.append(helper.make_tensor_value_info("other", FLOAT, ["batch"]))
    with pytest.raises(ExportError, match="it has 2 inputs and 1 outputs"):
        read_network(model.SerializeToString())


def test_what_is_no_file_or_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        read_network(tmp_path / "missing.onnx")
    with pytest.raises(ExportError, match="not an ONNX model"):
        read_network(b"\x00\x01 nonsense")


def test_a_constant_whose_bytes_are_missing_is_named() -> None:
    model = model_of([node("Mul", "x", "w")], arrays(w=(8,)))
    model.graph.initializer[0].raw_data = b"\x00" * 5
    model.graph.output[0].name = "z"
    with pytest.raises(ExportError, match="'w'"):
        read_network(model.SerializeToString())
