from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from robustcompress import densify
from robustcompress.errors import ExportError, StorageError
from robustcompress.export import densifying
from robustcompress.export.claims import read_claims, write_claims
from robustcompress.export.densify import dense_model
from robustcompress.export.densifying import DenseStyle
from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.onnx_file import inspect_file
from robustcompress.export.session import OnnxSession
from robustcompress.export.values import ValueType

IMAGES = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def sparse_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1600, 20)).eval()
    with torch.no_grad():
        for layer in (network[0], network[3]):
            layer.get_parameter("weight").mul_(torch.rand_like(layer.get_parameter("weight")) < 0.1)
    return network


def written(path: Path, values: ValueType = "float32") -> Path:
    Onnx(values=values).write(sparse_network(), path, images=IMAGES, metadata={"threat": "linf"})
    write_claims(path, {"robust": 1})
    return path


@pytest.mark.parametrize("style", ["dense", "sparse-initializer"])
@pytest.mark.parametrize("values", ["float32", "int8"])
def test_plain_files_compute_the_same_bit_for_bit(
    style: DenseStyle, values: ValueType, tmp_path: Path
) -> None:
    source = written(tmp_path / "model.onnx", values)
    held = source.read_bytes()
    found = densify(source, tmp_path / "plain.onnx", style=style)
    assert source.read_bytes() == held
    assert torch.equal(OnnxSession(found.path, threads=1)(IMAGES), OnnxSession(source, threads=1)(IMAGES))
    assert (found.style, found.images_compared, found.source_bytes) == (style, 4, len(held))
    assert found.size_bytes == found.path.stat().st_size
    described = inspect_file(found.path)
    assert described.style == style
    assert described.metadata["threat"] == "linf"
    assert read_claims(found.path) is None
    operators = {node.op_type for node in onnx.load(found.path).graph.node}
    assert not operators & {"ScatterElements", "CumSum", "Cast", "ConstantOfShape"}


def test_dense_weights_are_those_of_the_network(tmp_path: Path) -> None:
    found = densify(written(tmp_path / "model.onnx"), tmp_path / "plain.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(found.path).graph.initializer}
    state = sparse_network().state_dict()
    for name in ("0.weight", "3.weight", "3.bias"):
        np.testing.assert_array_equal(stored[name], state[name].numpy())
    assert found.size_bytes > 4 * 32000


def test_sparse_initializers_hold_what_is_not_zero(tmp_path: Path) -> None:
    found = densify(written(tmp_path / "model.onnx"), tmp_path / "plain.onnx", style="sparse-initializer")
    graph = onnx.load(found.path).graph
    weight = sparse_network().state_dict()["3.weight"].numpy()
    (stored,) = (item for item in graph.sparse_initializer if item.values.name == "3.weight")
    assert list(stored.dims) == list(weight.shape)
    np.testing.assert_array_equal(numpy_helper.to_array(stored.values), weight[weight != 0])
    np.testing.assert_array_equal(numpy_helper.to_array(stored.indices), np.flatnonzero(weight))
    assert found.size_bytes < 12 * np.count_nonzero(weight) + 5000
    assert "3.bias" in {tensor.name for tensor in graph.initializer}
    ort.InferenceSession(found.path, providers=["CPUExecutionProvider"])


def test_equal_files_give_equal_bytes(tmp_path: Path) -> None:
    source = written(tmp_path / "model.onnx")
    first, second = (densify(source, tmp_path / name) for name in ("a.onnx", "b.onnx"))
    assert first.sha256 == second.sha256


def test_what_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "model.onnx")
    real = dense_model

    def wrong(model: onnx.ModelProto) -> onnx.ModelProto:
        made = real(model)
        (bias,) = (tensor for tensor in made.graph.initializer if tensor.name == "3.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
        return made

    monkeypatch.setattr(densifying, "dense_model", wrong)
    with pytest.raises(ExportError, match=r"plain\.onnx: it does not compute what model\.onnx computes"):
        densify(source, tmp_path / "plain.onnx")
    assert not (tmp_path / "plain.onnx").exists()


def test_a_file_of_open_size_is_copied_without_comparison(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    source = tmp_path / "model.onnx"
    Onnx().write(network.eval(), source, images=IMAGES, metadata={})
    model = onnx.load(source)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, source)
    assert densify(source, tmp_path / "plain.onnx").images_compared == 0


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*gone\.onnx"):
        densify(tmp_path / "gone.onnx", tmp_path / "plain.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="not an ONNX model"):
        densify(tmp_path / "bad.onnx", tmp_path / "plain.onnx")
