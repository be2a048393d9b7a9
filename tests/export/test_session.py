from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from robustcompress.errors import ConfigError, DataError, ExportError, StorageError
from robustcompress.export.session import OnnxSession

WEIGHT = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def model(
    nodes: list[NodeProto] | None = None,
    *,
    batch: str | int = "batch",
    inputs: tuple[str, ...] = ("images",),
    outputs: tuple[str, ...] = ("logits",),
    dtype: int = TensorProto.FLOAT,
) -> ModelProto:
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["images", "weight"], ["logits"])],
        "g",
        [helper.make_tensor_value_info(name, dtype, [batch, 4]) for name in inputs],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(made, {"robustcompress.threat": '{"norm": "linf"}'})
    return made


def test_logits_are_those_of_the_graph_however_they_are_batched() -> None:
    images = torch.rand(10, 4)
    expected = images @ torch.from_numpy(WEIGHT)
    for batch_size in (1, 3, 10, 256):
        found = OnnxSession(model().SerializeToString(), threads=1, batch_size=batch_size)(images)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)


def test_any_floating_point_images_are_taken_and_carry_no_graph() -> None:
    session = OnnxSession(model().SerializeToString())
    images = torch.rand(4, 2, dtype=torch.float64).T.requires_grad_()  # not contiguous
    found = session(images)
    assert not found.requires_grad
    torch.testing.assert_close(found, (images.detach().float() @ torch.from_numpy(WEIGHT)))


def test_name_shape_and_metadata_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(model().SerializeToString())
    session = OnnxSession(path)
    assert session.name == "small.onnx"
    assert repr(session) == "OnnxSession('small.onnx')"
    assert session.input_shape == (None, 4)
    assert session.metadata == {"robustcompress.threat": '{"norm": "linf"}'}
    assert OnnxSession(str(path), name="mine").name == "mine"


def test_a_file_of_fixed_batch_gets_batches_of_that_size() -> None:
    session = OnnxSession(model(batch=2).SerializeToString())
    assert session.input_shape == (2, 4)
    images = torch.rand(6, 4)
    torch.testing.assert_close(session(images), images @ torch.from_numpy(WEIGHT))
    with pytest.raises(DataError, match=r"takes images \[2, 4\]; got \[5, 4\]"):
        session(torch.rand(5, 4))


@pytest.mark.parametrize("shape", [(2, 5), (4,), (2, 4, 1), (0, 4)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    session = OnnxSession(model().SerializeToString(), name="net.onnx")
    with pytest.raises(DataError, match=r"net\.onnx takes images \[any, 4\]; got \["):
        session(torch.rand(shape))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*gone\.onnx: No such file"):
        OnnxSession(tmp_path / "gone.onnx")


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"^broken\.onnx: not an ONNX model: .*Export it again\.$"):
        OnnxSession(path)
    strange = model([helper.make_node("Frobnicate", ["images"], ["logits"])]).SerializeToString()
    with pytest.raises(ExportError, match=r"^odd\.onnx: ONNX Runtime [\d.]+ cannot load it: .*newer than"):
        OnnxSession(strange, name="odd.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_file_that_asks_for_gigabytes_of_pixels_is_refused() -> None:
    with pytest.raises(ExportError, match=r"it takes images \[100000000, 4\], more than 268,435,456 numbers"):
        OnnxSession(model(batch=100_000_000).SerializeToString())


def test_files_with_other_ends_are_refused() -> None:
    two_in = model([helper.make_node("Add", ["images", "more"], ["logits"])], inputs=("images", "more"))
    with pytest.raises(ExportError, match=r"expected one input .* inputs \['images', 'more'\]"):
        OnnxSession(two_in.SerializeToString())
    nodes = [helper.make_node("Abs", ["images"], ["a"]), helper.make_node("Neg", ["images"], ["b"])]
    with pytest.raises(ExportError, match=r"expected one input .* outputs \['a', 'b'\]"):
        OnnxSession(model(nodes, outputs=("a", "b")).SerializeToString())
    doubles = model([helper.make_node("Abs", ["images"], ["logits"])], dtype=TensorProto.DOUBLE)
    with pytest.raises(ExportError, match=r"expected float32 images; the file takes tensor\(double\)"):
        OnnxSession(doubles.SerializeToString())


def test_outputs_that_are_no_logits_are_refused() -> None:
    flat = model([helper.make_node("ReduceSum", ["images"], ["logits"], keepdims=0)])
    with pytest.raises(ExportError, match=r"expected logits \[2, classes\]; got \[\]"):
        OnnxSession(flat.SerializeToString())(torch.rand(2, 4))


def test_a_failure_at_run_time_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[3, 4]),
        helper.make_node("Reshape", ["images", "shape"], ["logits"]),
    ]
    session = OnnxSession(model(nodes).SerializeToString(), name="net.onnx")
    assert session(torch.rand(3, 4)).shape == (3, 4)
    with pytest.raises(ExportError, match=r"net\.onnx: ONNX Runtime failed: .*Reshape"):
        session(torch.rand(2, 4))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("threads", "batch_size"), [(-1, 1), (0, 0)])
def test_settings_out_of_range_are_refused(threads: int, batch_size: int) -> None:
    with pytest.raises(ConfigError, match="threads must be 0 or more and batch_size 1 or more"):
        OnnxSession(model().SerializeToString(), threads=threads, batch_size=batch_size)
