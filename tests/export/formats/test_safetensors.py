from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export import onnx_writing
from robustcompress.export.formats import safetensors as module
from robustcompress.export.formats.safetensors import Safetensors
from robustcompress.export.rounding import round_values
from robustcompress.export.values import ValueType
from robustcompress.graph.folding import fold_batchnorm
from robustcompress.storage import numpy_reader
from robustcompress.storage.packed_file import write_packed

KINDS: tuple[ValueType, ...] = ("float32", "float16", "int8", "int6", "int4")


class Small(nn.Module):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.5), persistent=False)
        self.convolution = nn.Conv2d(1, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8 * 36, 4)

    def forward(self, images: Tensor) -> Tensor:
        inner = torch.relu(self.norm(self.convolution(images - self.mean)))
        logits: Tensor = self.classifier(inner.flatten(1))
        return logits


def network() -> nn.Module:
    made = Small().eval()
    with torch.no_grad():
        made.classifier.weight *= torch.rand_like(made.classifier.weight) < 0.05
        made.norm.bias.normal_()
    return made


IMAGES = torch.rand(3, 1, 8, 8)


@pytest.mark.parametrize("values", KINDS)
def test_numpy_reads_the_tensors_of_the_rounded_network(values: ValueType, tmp_path: Path) -> None:
    made = network()
    path = tmp_path / "model.safetensors"
    exported = Safetensors(values=values).write(made, path, images=IMAGES, metadata={"a": "ä"})
    assert exported.kind == "safetensors"
    if values != "float32":  # what is compared is the rounded network: folding is all that float32 changes
        assert exported.largest_difference == 0
    assert path.stat().st_size == exported.size_bytes < exported.dense_size_bytes
    expected = round_values(fold_batchnorm(made, IMAGES).network, values).network.state_dict()
    found = numpy_reader.read(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())
    assert numpy_reader.read_about(path) == {"a": "ä"}


def test_unfolded_tensors_load_into_the_users_own_network(tmp_path: Path) -> None:
    made, other = network(), Small().eval()
    path = tmp_path / "model.safetensors"
    Safetensors(fold=False).write(made, path, images=IMAGES, metadata={})
    other.load_state_dict({name: torch.tensor(array) for name, array in numpy_reader.read(path).items()})
    torch.testing.assert_close(other(IMAGES), made(IMAGES), rtol=0, atol=0)


def test_equal_networks_give_equal_bytes(tmp_path: Path) -> None:
    made = network()
    digests = {
        Safetensors(values="int6")
        .write(made, tmp_path / name, images=IMAGES, metadata={"b": "1", "a": "2"})
        .sha256
        for name in ("one", "two")
    }
    assert len(digests) == 1


def test_a_file_that_holds_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, write = network(), write_packed

    def wrong(tensors: Mapping[str, Tensor], **others: object) -> bytes:
        return write({name: 2 * tensor for name, tensor in tensors.items()})

    monkeypatch.setattr(module, "write_packed", wrong)
    with pytest.raises(ExportError, match="the file is not the network"):
        Safetensors().write(made, tmp_path / "model.safetensors", images=IMAGES, metadata={})
    assert not (tmp_path / "model.safetensors").exists()


def test_a_disk_that_gives_back_something_else_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_writing, "write_bytes", lambda path, data: path.write_bytes(data[:-1]))
    with pytest.raises(ExportError, match="the disk gave back other bytes"):
        Safetensors().write(network(), tmp_path / "model.safetensors", images=IMAGES, metadata={})


def test_a_network_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    made = network()
    made.cache = torch.rand(2, requires_grad=True) * 2
    with pytest.raises(ExportError, match="Small cannot be copied to the CPU"):
        Safetensors().write(made, tmp_path / "model.safetensors", images=IMAGES, metadata={})
