import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from robustcompress.export.tidy import tidy


def cluttered(
    weight_names: tuple[str, str, str] = ("net.conv.weight", "net.bias", "net.images"),
) -> ModelProto:
    kernel, bias, scale = weight_names
    nodes = [
        helper.make_node(
            "Conv",
            ["images", kernel, bias],
            ["inner"],
            auto_pad="NOTSET",
            group=1,
            strides=[1, 1],
            name="node_conv",
        ),
        helper.make_node("Clip", ["inner", "", "most"], ["clipped"]),
        helper.make_node("Mul", ["clipped", scale], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["logits"], keepdims=0),
    ]
    stored = {
        kernel: np.array([[[[1.0, -0.0], [0.0, -2.0]]]], dtype=np.float32),
        bias: np.array([-0.0], dtype=np.float32),
        scale: np.array(3.0, dtype=np.float32),
        "most": np.array(1.0, dtype=np.float32),
        "axes": np.array([2, 3], dtype=np.int64),
    }
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])
    inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["batch", 1, 3, 3])
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [images],
        [logits],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
        value_info=[inner],
        doc_string="where it came from",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="pytorch")
    for part in (model, graph.input[0], graph.node[0], graph.initializer[0]):
        part.metadata_props.add(key="stack_trace", value="/home/someone/secret.py")
    for node in model.graph.node:
        node.doc_string = "File /home/someone/secret.py"
        node.metadata_props.add(key="stack_trace", value="/home/someone/secret.py")
    onnx.checker.check_model(model, full_check=True)
    return model


def test_strides_and_dilations_of_one_go_and_the_model_stays_the_same() -> None:
    model = cluttered()
    model.graph.node[0].attribute.append(helper.make_attribute("dilations", [1, 1]))
    found = tidy(model)
    assert not {"strides", "dilations"} & {item.name for item in found.graph.node[0].attribute}
    images = np.random.default_rng(0).random((2, 1, 4, 4), dtype=np.float32)
    before, after = (ReferenceEvaluator(item).run(None, {"images": images}) for item in (model, found))
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    strided = cluttered()
    strided.graph.node[0].attribute[-1].ints[:] = [1, 2]
    assert "strides" in {item.name for item in tidy(strided).graph.node[0].attribute}


def test_nothing_of_the_exporter_is_left() -> None:
    data = tidy(cluttered()).SerializeToString()
    for trace in (b"secret", b"pytorch", b"node_conv", b"inner", b"came from", b"stack"):
        assert trace not in data


def test_the_model_stays_valid_and_computes_the_same() -> None:
    found = tidy(cluttered(), prefix="net.")
    onnx.checker.check_model(found, full_check=True)
    images = np.random.default_rng(0).random((2, 1, 4, 4), dtype=np.float32)
    expected, got = (
        ReferenceEvaluator(model).run(["logits"], {"images": images}) for model in (cluttered(), found)
    )
    np.testing.assert_array_equal(np.asarray(expected), np.asarray(got))


def test_weights_lose_the_prefix_unless_that_collides() -> None:
    names = {tensor.name for tensor in tidy(cluttered(), prefix="net.").graph.initializer}
    assert names == {"conv.weight", "bias", "net.images", "most", "axes"}


def test_inner_names_are_short_and_avoid_weights_called_likewise() -> None:
    found = tidy(cluttered(("0", "2", "net.0")), prefix="net.")
    onnx.checker.check_model(found, full_check=True)
    assert [list(node.output) for node in found.graph.node] == [["1"], ["3"], ["4"], ["logits"]]
    assert [tensor.name for tensor in found.graph.initializer[:3]] == ["0", "2", "net.0"]


def test_defaults_are_left_out_and_other_attributes_stay() -> None:
    kept = [[item.name for item in node.attribute] for node in tidy(cluttered()).graph.node]
    assert kept == [[], [], [], ["keepdims"]]


def test_negative_zeros_become_positive() -> None:
    for tensor in tidy(cluttered()).graph.initializer[:2]:
        array = numpy_helper.to_array(tensor)
        assert not np.signbit(array[array == 0]).any()


def test_a_graph_with_branches_keeps_its_names() -> None:
    def branch(kind: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(kind, TensorProto.FLOAT, ["batch", 1])
        return helper.make_graph([helper.make_node(kind, ["inner"], [kind])], kind, [], [output])

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in ("images", "logits")
    ]
    nodes = [
        helper.make_node("Abs", ["images"], ["inner"], name="gone"),
        helper.make_node("If", ["yes"], ["logits"], then_branch=branch("Neg"), else_branch=branch("Exp")),
    ]
    stored = [numpy_helper.from_array(np.array(True), "yes")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    found = tidy(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    onnx.checker.check_model(found, full_check=True)
    assert [node.name for node in found.graph.node] == ["", ""]
    assert found.graph.node[0].output[0] == "inner"


def test_the_model_itself_is_not_changed() -> None:
    model = cluttered()
    before = model.SerializeToString(deterministic=True)
    tidy(model, prefix="net.")
    assert model.SerializeToString(deterministic=True) == before
