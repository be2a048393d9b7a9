from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from robustcompress.errors import ExportError, StorageError
from robustcompress.export.onnx_file import inspect_file, read_model


def small_model() -> ModelProto:
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("images", "logits")
    ]
    stored = [
        numpy_helper.from_array(np.ones((3,), dtype=np.float32), "weight"),
        numpy_helper.from_array(np.zeros((2, 2), dtype=np.uint8), "codes"),
    ]
    node = helper.make_node("Add", ["images", "weight"], ["logits"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    helper.set_model_props(model, {"robustcompress.style": "compact", "note": "für alle"})
    return model


def test_a_file_and_its_bytes_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    data = small_model().SerializeToString()
    path.write_bytes(data)
    of_file, of_bytes = inspect_file(path), inspect_file(data)
    assert (of_file.name, of_bytes.name) == ("model.onnx", "(bytes)")
    assert of_file.constants == of_bytes.constants
    assert (of_file.style, of_file.opset, of_file.ir_version) == ("compact", 19, 9)
    assert of_file.metadata == {"robustcompress.style": "compact", "note": "für alle"}
    assert of_file.size_bytes == path.stat().st_size


def test_bytes_are_told_apart_by_constant() -> None:
    model = small_model()
    found = inspect_file(model.SerializeToString())
    assert [(item.name, item.dtype, item.shape) for item in found.constants] == [
        ("weight", "float", (3,)),
        ("codes", "uint8", (2, 2)),
    ]
    del model.graph.initializer[:]
    # A constant's own bytes, and a tag and a length around each.
    assert found.graph_bytes == pytest.approx(len(model.SerializeToString()), abs=8)


def test_files_of_others_have_an_unknown_style() -> None:
    model = small_model()
    del model.metadata_props[:]
    assert inspect_file(model.SerializeToString()).style == "unknown"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*gone\.onnx: No such file or directory"):
        read_model(tmp_path / "gone.onnx")


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff not a model", b""])
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ExportError, match=r"model\.onnx: not an ONNX model: .* Export it again"):
        inspect_file(path)
