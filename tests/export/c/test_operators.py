"""What is read of an ONNX graph, against ONNX Runtime; nothing is compiled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from robustcompress.errors import ExportError
from robustcompress.export.c.network import Add, Affine, Clamp, Convolution, Linear, Network
from robustcompress.export.c.reading import read
from robustcompress.export.c.reference import reference_logits
from robustcompress.export.session import OnnxSession

Constants = dict[str, np.ndarray]


def model(
    nodes: list[NodeProto], constants: Constants, *, shape: tuple[int | str, ...] = (3, 8, 6), opset: int = 18
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "classes"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def rand(*shape: int) -> np.ndarray:
    return torch.randn(shape).numpy()


def node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


FLAT = node("Flatten", "x", "logits")
FLAT_IMAGE = node("Flatten", "images", "f")


def conv(source: str = "images", output: str = "x", weight: str = "w", **attributes: Any) -> NodeProto:
    return node("Conv", f"{source} {weight}", output, **attributes)


GRAPHS: dict[str, Callable[[], tuple[list[NodeProto], Constants]]] = {
    "a convolution with a bias": lambda: (
        [node("Conv", "images w b", "x", pads=[1, 1, 1, 1]), FLAT],
        {"w": rand(4, 3, 3, 3), "b": rand(4)},
    ),
    "SAME_UPPER and strides": lambda: (
        [conv(auto_pad="SAME_UPPER", strides=[2, 2]), FLAT], {"w": rand(4, 3, 2, 3)}
    ),
    "SAME_LOWER": lambda: ([conv(auto_pad="SAME_LOWER"), FLAT], {"w": rand(4, 3, 2, 4)}),
    "VALID": lambda: ([conv(auto_pad="VALID", dilations=[2, 1]), FLAT], {"w": rand(4, 3, 2, 4)}),
    "depthwise": lambda: ([conv(group=3), FLAT], {"w": rand(6, 1, 3, 3)}),
    "max pooling over padding": lambda: (
        [node("MaxPool", "images", "x", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0]), FLAT], {}
    ),
    "average pooling": lambda: (
        [node("AveragePool", "images", "x", kernel_shape=[2, 3], strides=[2, 3]), FLAT], {}
    ),
    "average pooling over padding": lambda: (
        [node("AveragePool", "images", "x", kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1),
         FLAT],
        {},
    ),
    "global pooling and a layer": lambda: (
        [
            node("GlobalAveragePool", "images", "m"),
            node("Squeeze", "m axes", "s"),
            node("Gemm", "s w b", "logits", transB=1, alpha=0.5, beta=2.0),
        ],
        {"axes": np.array([2, 3]), "w": rand(5, 3), "b": rand(5)},
    ),
    "means and a product": lambda: (
        [node("ReduceMean", "images axes", "m", keepdims=0), node("MatMul", "m w", "logits")],
        {"axes": np.array([-1, -2]), "w": rand(3, 4)},
    ),
    "means that keep their dimensions, then a convolution": lambda: (
        [node("ReduceMean", "images axes", "m"), conv("m"), FLAT],
        {"axes": np.array([2, 3]), "w": rand(3, 3, 1, 1)},
    ),
    "normalisation of the image": lambda: (
        [node("Sub", "images m", "s"), node("Div", "s d", "n"), conv("n", pads=[1, 1, 1, 1]), FLAT],
        {"m": rand(1, 3, 1, 1), "d": np.array([0.5, 2.0, 3.0], np.float32).reshape(3, 1, 1),
         "w": rand(2, 3, 3, 3)},
    ),
    "arithmetic with constants": lambda: (
        [
            node("Sub", "one images", "a"), node("Mul", "two a", "b"), node("Add", "b c", "x"), FLAT,
        ],
        {"one": np.array(1.0, np.float32), "two": rand(3, 1, 1), "c": rand(1, 3, 1, 1)},
    ),
    "batch normalisation after and before a convolution": lambda: (
        [
            conv(output="c"),
            node("BatchNormalization", "c g b m v", "n", epsilon=1e-3),
            node("Relu", "n", "r"),
            node("BatchNormalization", "r g b m v", "p"),
            node("Conv", "p u", "x"),
            FLAT,
        ],
        {"w": rand(4, 3, 3, 3), "u": rand(2, 4, 1, 1), "g": rand(4), "b": rand(4), "m": rand(4),
         "v": np.abs(rand(4)) + 0.1},
    ),
    "a residual, and a clamp": lambda: (
        [conv(output="a"), conv(output="b", weight="u"), node("Add", "a b", "s"), node("Relu", "s", "r"),
         node("Add", "r a", "t"), node("Clip", "t low high", "x"), FLAT],
        {"w": rand(4, 3, 3, 3), "u": rand(4, 3, 3, 3), "low": np.array(-1.0, np.float32),
         "high": np.array(6.0, np.float32)},
    ),
    "a value added to itself": lambda: (
        [conv(output="a"), node("Add", "a a", "x"), FLAT], {"w": rand(4, 3, 3, 3)}
    ),
    "clamps of the image, one after another": lambda: (
        [node("Relu", "images", "a"), node("Clip", "a low high", "x"), FLAT],
        {"low": np.array(-3.0, np.float32), "high": np.array(0.5, np.float32)},
    ),
    "clamps that leave one number": lambda: (
        [conv(output="c"), node("Relu", "c", "a"), node("Clip", "a low high", "x"), FLAT],
        {"w": rand(2, 3, 1, 1), "low": np.array(-3.0, np.float32), "high": np.array(-1.0, np.float32)},
    ),
    "channels joined": lambda: (
        [conv(output="a"), conv(output="b", weight="u"), node("Concat", "a b a", "j", axis=1),
         node("Conv", "j k", "x"), FLAT],
        {"w": rand(4, 3, 3, 3), "u": rand(2, 3, 3, 3), "k": rand(2, 10, 1, 1)},
    ),
    "features": lambda: (
        [FLAT_IMAGE, node("Gemm", "f w b", "h"), node("Relu", "h", "r"), node("Add", "r h", "s"),
         node("Mul", "s k", "m"), node("Clip", "m low high", "c"), node("Identity", "c", "i"),
         node("Concat", "i h", "logits", axis=-1)],
        {"w": rand(144, 7), "b": rand(7), "k": rand(7), "low": np.array(-1.0, np.float32),
         "high": np.array(1.0, np.float32)},
    ),
    "a shape that is computed": lambda: (
        [node("Shape", "images", "s"), node("Gather", "s zero", "g"), node("Concat", "g minus", "t", axis=0),
         node("Reshape", "images t", "logits")],
        {"zero": np.array([0]), "minus": np.array([-1])},
    ),
    "a reshape that copies the batch": lambda: (
        [node("Reshape", "images t", "logits")], {"t": np.array([0, -1])}
    ),
    "a reshape that leaves the batch open": lambda: (
        [node("Reshape", "images t", "logits")], {"t": np.array([-1, 144])}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(GRAPHS))
def test_graph_is_read_as_onnx_runtime_computes_it(name: str) -> None:
    made = model(*GRAPHS[name]())
    images = torch.randn(2, 3, 8, 6)
    expected = OnnxSession(made.SerializeToString(), threads=1)(images)
    found = reference_logits(read(made), images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def kinds(network: Network) -> list[str]:
    return [type(operation).__name__ for operation in network.operations]


def test_layers_take_up_what_follows_them() -> None:
    network = read(model(*GRAPHS["a residual, and a clamp"]()))
    assert kinds(network) == ["Convolution"] * 3 + ["Flatten"]
    network = read(model(*GRAPHS["batch normalisation after and before a convolution"]()))
    assert [len(item.weight) for item in network.operations if isinstance(item, Convolution)] == [4, 4, 2]
    assert not any(isinstance(item, Add | Affine | Clamp) for item in network.operations)


def test_normalisation_of_the_image_stays_before_the_padding() -> None:
    network = read(model(*GRAPHS["normalisation of the image"]()))
    assert kinds(network) == ["Affine", "Convolution", "Flatten"]


def test_layers_are_called_as_their_weights() -> None:
    constants = {"features.0.weight": rand(4, 3, 3, 3)}
    network = read(model([conv(weight="features.0.weight"), FLAT], constants))
    assert [item.label for item in network.operations if isinstance(item, Convolution | Linear)] == [
        "features.0"
    ]


REFUSED: dict[str, tuple[list[NodeProto], Constants, str]] = {
    "operator": (
        [node("Sigmoid", "images", "x"), FLAT], {},
        r"Sigmoid.*not understood.*Operators that can: Add",
    ),
    "domain": ([helper.make_node("Odd", ["images"], ["logits"], domain="ours")], {}, "domain 'ours'"),
    "dimensions": ([FLAT_IMAGE, conv("f"), FLAT], {"w": rand(4, 3, 3, 3)}, r"input is \[1, 144\], not"),
    "weight's dimensions": ([conv(), FLAT], {"w": rand(4, 3, 3)}, "weight has 3 dimensions"),
    "weight's channels": ([conv(), FLAT], {"w": rand(4, 2, 3, 3)}, "does not fit 3 channels"),
    "large window": ([conv(), FLAT], {"w": rand(4, 3, 9, 3)}, "larger than the image"),
    "negative pads": ([conv(pads=[-1, 0, 0, 0]), FLAT], {"w": rand(4, 3, 3, 3)}, "cut into the image"),
    "moving weight": (
        [conv(output="a"), node("Conv", "images a", "x"), FLAT], {"w": rand(4, 3, 3, 3)}, "input 1 depends on"
    ),
    "not finite": ([conv(), FLAT], {"w": rand(4, 3, 3, 3) * np.inf}, "not finite"),
    "ceil mode": (
        [node("MaxPool", "images", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), FLAT], {},
        "ceil_mode",
    ),
    "dilated pooling": (
        [node("MaxPool", "images", "x", kernel_shape=[2, 2], dilations=[2, 2]), FLAT], {}, "dilations"
    ),
    "pooling of padding": (
        [node("MaxPool", "images", "x", kernel_shape=[2, 2], pads=[2, 0, 0, 0]), FLAT], {}, "whole windows"
    ),
    "one dimension": ([node("MaxPool", "images", "x", kernel_shape=[2]), FLAT], {}, "1 dimensions, not 2"),
    "means without padding": (
        [node("AveragePool", "images", "x", kernel_shape=[2, 2], pads=[1, 0, 0, 0]), FLAT], {},
        "count_include_pad=0",
    ),
    "mean of channels": (
        [node("ReduceMean", "images a", "x"), FLAT], {"a": np.array([1])},
        r"over axes \[1\]",
    ),
    "transA": ([FLAT_IMAGE, node("Gemm", "f w", "logits", transA=1)], {"w": rand(144, 2)}, "transA"),
    "bias": (
        [FLAT_IMAGE, node("Gemm", "f w b", "logits")], {"w": rand(144, 2), "b": rand(2, 1)},
        r"bias has shape \[2, 1\]",
    ),
    "matrix": ([FLAT_IMAGE, node("MatMul", "f w", "logits")], {"w": rand(1, 144, 2)}, "has 3 dimensions"),
    "features": ([FLAT_IMAGE, node("MatMul", "f w", "logits")], {"w": rand(9, 2)}, r"not \[batch, 9\]"),
    "training": (
        [node("BatchNormalization", "images g g g g", "x", training_mode=1), FLAT], {"g": rand(3)},
        "training mode",
    ),
    "map of constants": (
        [node("Add", "images c", "x"), FLAT], {"c": rand(3, 8, 6)},
        "not one number for each",
    ),
    "sum of two shapes": (
        [conv(output="c"), node("Add", "images c", "x"), FLAT], {"w": rand(3, 3, 3, 3)}, "which differ"
    ),
    "divided by pixels": (
        [node("Div", "c images", "x"), FLAT], {"c": rand(3, 1, 1)},
        "input 0 does not depend",
    ),
    "flattened batch": ([node("Flatten", "images", "logits", axis=2)], {}, "from axis 2, not from 1"),
    "other shape": (
        [node("Reshape", "images t", "x"), FLAT], {"t": np.array([1, 8, 3, 6])},
        "only flattening",
    ),
    "batch in shape": (
        [node("Reshape", "images t", "logits")], {"t": np.array([2, 72])},
        "must stay the first",
    ),
    "squeezed batch": ([node("Squeeze", "images a", "x"), FLAT], {"a": np.array([0])}, "removes the batch"),
    "rows joined": ([node("Concat", "images images", "x", axis=2), FLAT], {}, "only channels are understood"),
    "no output": ([node("Identity", "c", "logits")], {"c": rand(1, 2)}, "does not depend on the images"),
    "planes": ([conv(output="logits")], {"w": rand(4, 3, 3, 3)}, r"not \[batch, classes\]"),
    "nothing": ([node("Relu", "ghost", "logits")], {}, "nothing makes its input 'ghost'"),
    "damaged": ([node("Reshape", "c t", "d"), node("Add", "images d", "x"), FLAT],
                {"c": rand(3), "t": np.array([2, 2])}, "damaged|cannot be computed"),
    "two outputs": (
        [helper.make_node("MaxPool", ["images"], ["x", "indices"], kernel_shape=[2, 2]), FLAT], {},
        "2 outputs, not one",
    ),
    "missing axis": ([node("Concat", "images images", "x"), FLAT], {}, "arguments are not understood"),
    "left out": ([helper.make_node("Squeeze", ["images", ""], ["x"]), FLAT], {}, "input 1 is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_written_is_refused_by_name(name: str) -> None:
    nodes, constants, message = REFUSED[name]
    with pytest.raises(ExportError, match=f"cannot become a C file.*{message}|{message}"):
        read(model(nodes, constants))


def test_subgraphs_and_sparse_initializers_are_refused() -> None:
    branch = helper.make_graph(
        [node("Identity", "c", "d")], "b", [], [helper.make_tensor_value_info("d", TensorProto.FLOAT, [1])]
    )
    choice = helper.make_node("If", ["yes"], ["k"], then_branch=branch, else_branch=branch)
    constants: Constants = {"yes": np.array(True), "c": rand(1)}
    with pytest.raises(ExportError, match="holds a graph of its own"):
        read(model([choice, node("Mul", "images k", "x"), FLAT], constants))
    made = model([node("Flatten", "images", "logits")], {})
    made.graph.sparse_initializer.add()
    with pytest.raises(ExportError, match="sparse initializers"):
        read(made)


def test_ends_must_be_images_and_logits() -> None:
    made = model([node("Flatten", "images", "logits")], {})
    made.graph.input.add().CopyFrom(made.graph.input[0])
    with pytest.raises(ExportError, match="2 inputs and 1 outputs"):
        read(made)
    made = model([node("Flatten", "images", "logits")], {})
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    with pytest.raises(ExportError, match="its input is UINT8, not FLOAT"):
        read(made)


def test_open_sizes_must_be_given() -> None:
    made = model([node("Flatten", "images", "logits")], {}, shape=(3, "height", "width"))
    with pytest.raises(ExportError, match=r"takes images \[3, any, any\]; asked for \[3, 0, 0\]"):
        read(made)
    with pytest.raises(ExportError, match=r"asked for \[1, 8, 6\]"):
        read(made, image_shape=(1, 8, 6))
    assert read(made, image_shape=(3, 8, 6)).shapes["logits"] == (144,)
