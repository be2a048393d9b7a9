import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from robustcompress.errors import ExportError
from robustcompress.export.compact import compact
from robustcompress.export.densify import dense_model


def linear_model(weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> ModelProto:
    """Return logits = images @ (2 - weight) / 7, whose first part depends on constants alone."""
    nodes = [
        helper.make_node("Sub", ["two", "weight"], ["kernel"]),
        helper.make_node("MatMul", ["images", "kernel"], ["product"]),
        helper.make_node("Div", ["product", "seven"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in zip(("images", "logits"), weight.shape, strict=True)
    ]
    numbers = {"two": np.float32(2), "seven": np.float32(7)}
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in numbers.items()]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "weight"), *stored]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def sparse_weight() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    random = np.random.default_rng(0)
    return (random.standard_normal((70, 60)) * (random.random((70, 60)) < 0.1)).astype(np.float32)


def test_decoders_become_initializers_and_nodes_on_images_stay() -> None:
    dense = dense_model(compact(linear_model(sparse_weight()), group="net"))
    onnx.checker.check_model(dense, full_check=True)
    assert [node.op_type for node in dense.graph.node] == ["MatMul", "Div"]
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in dense.graph.initializer}
    assert found.keys() == {"kernel", "seven"}
    np.testing.assert_array_equal(found["kernel"], np.float32(2) - sparse_weight())


def test_a_dense_model_without_constant_nodes_comes_back_equal() -> None:
    model = linear_model(sparse_weight())
    del model.graph.node[0]
    model.graph.node[0].input[1] = "weight"
    del model.graph.initializer[1]
    assert dense_model(model) == model


def test_the_model_itself_is_not_changed() -> None:
    packed = compact(linear_model(sparse_weight()), group="net")
    before = packed.SerializeToString(deterministic=True)
    dense_model(packed)
    assert packed.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("kind", ["ScatterElements", "Reshape"])
def test_a_damaged_decoder_is_named(kind: str) -> None:
    packed = compact(linear_model(sparse_weight()), group="net")
    node = next(node for node in reversed(packed.graph.node) if node.op_type == kind)
    packed.graph.initializer.append(numpy_helper.from_array(np.array([3, 10**9]), "wrong"))
    node.input[1] = "wrong"
    with pytest.raises(ExportError, match=f"the decoder of '{node.output[0]}' is damaged: {kind}"):
        dense_model(packed)
