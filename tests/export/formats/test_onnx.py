import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from torch import Tensor, nn

from robustcompress.errors import ExportError, StorageError
from robustcompress.export import onnx_writing
from robustcompress.export.compact import compact
from robustcompress.export.densify import dense_model
from robustcompress.export.formats import Exported, Format
from robustcompress.export.formats import onnx as onnx_format
from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.onnx_file import inspect_file, read_model
from robustcompress.export.rounding import round_values
from robustcompress.export.session import OnnxSession
from robustcompress.export.twin import read_twin
from robustcompress.export.values import ValueType
from robustcompress.graph.folding import fold_batchnorm

METADATA = {"robustcompress.threat": '{"norm": "linf", "eps": 0.1}', "a": "ä", "z": ""}


class Residual(nn.Module):
    """Stem, a block with normalisation after each convolution, one with normalisation before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.before = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2, bias=False)
        self.classifier = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.stem(images)
        inner = torch.relu(inner + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(inner))))))
        inner = self.shortcut(inner) + self.conv3(torch.relu(self.before(inner)))
        logits: Tensor = self.classifier(inner.mean((2, 3)))
        return logits


class Normalizing(nn.Module):
    """Normalises inside, and calls a parameter and a buffer what the file calls its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("images", torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1))
        self.logits = nn.Parameter(torch.randn(10, 3 * 8 * 8) / 10)

    def forward(self, x: Tensor, scale: float = 4.0) -> Tensor:
        return ((x - self.get_buffer("images")) * scale).flatten(1) @ self.logits.T


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 40), nn.BatchNorm1d(40), nn.GELU(), nn.Dropout(0.5), nn.Linear(40, 10)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def prepared(build: Callable[[], nn.Module], sparsity: float = 0.9) -> nn.Module:
    """Give a network statistics of its own and remove weights as a mask does, leaving negative zeros."""
    torch.manual_seed(0)
    network = build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            module.get_buffer("running_mean").normal_()
            module.get_buffer("running_var").uniform_(0.3, 2.0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand_like(parameter) >= sparsity)
    return network


IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Exported]:
    network = prepared(cnn)
    path = tmp_path_factory.mktemp("written") / "model.onnx"
    return network, Onnx().write(network, path, images=IMAGES, metadata=METADATA)


def assert_same_logits(network: nn.Module, path: Path, images: Tensor) -> None:
    with torch.no_grad():
        expected = network.cpu().float().eval()(images)
    found = OnnxSession(path)(images)
    assert float((expected - found).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_the_file_computes_what_the_network_computes_on_batches_of_any_size(
    written: tuple[nn.Module, Exported],
) -> None:
    network, exported = written
    for batch in (1, 2, 7):
        assert_same_logits(network, exported.path, torch.rand(batch, 3, 8, 8))


def test_what_comes_out_is_what_lies_on_the_disk(written: tuple[nn.Module, Exported]) -> None:
    _, exported = written
    data = exported.path.read_bytes()
    assert exported.kind == "onnx"
    assert exported.style == "compact"
    assert exported.size_bytes == len(data)
    assert exported.sha256 == hashlib.sha256(data).hexdigest()
    assert 0 <= exported.largest_difference <= 1e-4
    assert exported.images_compared == 6
    assert exported.details == {
        "opset": "18",
        "ir_version": "10",
        "group": "net",
        "batchnorm_folded": "1",
        "batchnorm_left": "0",
    }
    assert [entry.name for entry in exported.path.parent.iterdir()] == ["model.onnx"]


def test_the_file_is_small_and_says_what_it_is(written: tuple[nn.Module, Exported]) -> None:
    _, exported = written
    found = inspect_file(exported.path)
    assert (found.style, found.opset, found.ir_version) == ("compact", 18, 10)
    assert found.metadata == {**METADATA, "robustcompress.style": "compact"}
    assert list(found.metadata) == sorted(found.metadata)
    assert OnnxSession(exported.path).metadata == found.metadata
    session = OnnxSession(exported.path)
    assert session.input_shape == (None, 3, 8, 8)
    assert exported.size_bytes < 0.25 * exported.dense_size_bytes
    model = read_model(exported.path)
    assert [item.name for item in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
    assert b"File " not in exported.path.read_bytes()
    onnx.checker.check_model(model, full_check=True)


def test_weights_in_the_file_are_the_networks_bit_for_bit(written: tuple[nn.Module, Exported]) -> None:
    network, exported = written
    weights = network.state_dict()
    dense = dense_model(read_model(exported.path))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in dense.graph.initializer}
    for name in ("4.weight", "4.bias", "7.weight", "9.weight"):  # layers without batch normalisation
        expected = weights[name].numpy() + np.float32(0)
        assert found[name].tobytes() == expected.tobytes(), name
    assert np.array_equal(found["0.weight"] != 0, weights["0.weight"].numpy() != 0)


def test_dense_has_the_size_that_compact_promised(
    written: tuple[nn.Module, Exported], tmp_path: Path
) -> None:
    network, packed = written
    dense = Onnx(style="dense").write(network, tmp_path / "dense.onnx", images=IMAGES, metadata=METADATA)
    assert dense.style == "dense"
    assert dense.size_bytes == dense.dense_size_bytes == packed.dense_size_bytes
    assert dense.size_bytes >= 4 * sum(parameter.numel() for parameter in network.parameters())
    assert inspect_file(dense.path).style == "dense"
    decoded = {t.name: t.SerializeToString() for t in dense_model(read_model(packed.path)).graph.initializer}
    stored = {t.name: t.SerializeToString() for t in read_model(dense.path).graph.initializer}
    assert decoded == stored


def test_the_same_network_gives_the_same_bytes(written: tuple[nn.Module, Exported], tmp_path: Path) -> None:
    network, first = written
    backwards = dict(reversed(METADATA.items()))
    other_images = torch.rand(3, 3, 8, 8)
    second = Onnx().write(network, tmp_path / "again.onnx", images=other_images, metadata=backwards)
    assert second.path.read_bytes() == first.path.read_bytes()


@pytest.mark.parametrize("build", [Residual, Normalizing, mlp])
def test_networks_of_many_kinds_are_exported(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    network = prepared(build)
    exported = Onnx(group="layer").write(network, tmp_path / "model.onnx", images=IMAGES, metadata={})
    assert exported.style == "compact"
    assert_same_logits(network, exported.path, torch.rand(5, 3, 8, 8))
    folded = {"Residual": ("3", "1"), "Normalizing": ("0", "0"), "Sequential": ("1", "0")}
    counts = (exported.details["batchnorm_folded"], exported.details["batchnorm_left"])
    assert counts == folded[type(network).__name__]


@pytest.mark.parametrize("change", ["channels_last", "double", "half", "training", "transposed"])
def test_memory_format_type_and_mode_do_not_matter(change: str, tmp_path: Path) -> None:
    network = prepared(cnn)
    if change == "channels_last":
        for index in ("0", "4"):
            weight = network.get_submodule(index).get_parameter("weight")
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    elif change == "double":
        network.double()
    elif change == "half":
        network.half()
    elif change == "transposed":
        weight = network.get_submodule("7").get_parameter("weight")
        weight.data = weight.data.T.contiguous().T
    network.train(change == "training")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    exported = Onnx().write(network, tmp_path / "model.onnx", images=IMAGES.double(), metadata={})
    assert network.training == (change == "training")
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert_same_logits(network, exported.path, IMAGES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_on_the_gpu_is_exported_and_stays_there(tmp_path: Path) -> None:
    network = prepared(cnn).cuda()
    exported = Onnx().write(network, tmp_path / "model.onnx", images=IMAGES.cuda(), metadata={})
    assert all(parameter.is_cuda for parameter in network.parameters())
    assert_same_logits(network, exported.path, IMAGES)


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 8), (23, 10)])
def test_opset_and_ir_version_are_those_asked_for(opset: int, ir_version: int, tmp_path: Path) -> None:
    settings = Onnx(opset=opset, ir_version=ir_version)
    exported = settings.write(prepared(cnn), tmp_path / "model.onnx", images=IMAGES, metadata={})
    found = inspect_file(exported.path)
    assert (found.opset, found.ir_version) == (opset, ir_version)
    assert (exported.details["opset"], exported.details["ir_version"]) == (str(opset), str(ir_version))


def test_nothing_to_code_gives_a_dense_file(tmp_path: Path) -> None:
    exported = Onnx().write(prepared(mlp, sparsity=0), tmp_path / "m.onnx", images=IMAGES, metadata={})
    assert exported.style == "dense"
    assert exported.size_bytes == exported.dense_size_bytes
    assert inspect_file(exported.path).style == "dense"


def test_a_network_that_cannot_be_folded_says_why(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, images: Tensor) -> Tensor:
            total = torch.zeros(())
            for channel in images.unbind(1):  # torch.fx cannot iterate over what it does not know
                total = total + channel.sum((1, 2))
            logits: Tensor = self.body(images) + total[:, None]
            return logits

    network = prepared(Counting)
    exported = Onnx().write(network, tmp_path / "model.onnx", images=IMAGES, metadata={})
    assert exported.details["batchnorm_skipped"].startswith("torch.fx cannot trace Counting: ")
    assert_same_logits(network, exported.path, torch.rand(3, 3, 8, 8))


def test_a_file_that_computes_something_else_is_never_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(model: onnx.ModelProto, **settings: object) -> onnx.ModelProto:
        packed = compact(model, group="net")
        bias = next(tensor for tensor in packed.graph.initializer if tensor.name == "9.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * np.float32(1.5), "9.bias"))
        return packed

    monkeypatch.setattr(onnx_format, "compact", wrong)
    path = tmp_path / "model.onnx"
    with pytest.raises(
        ExportError, match=r"model\.onnx, batch size 6: the file is not the network: image \d"
    ):
        Onnx().write(prepared(cnn), path, images=IMAGES, metadata={})
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"the old one")
    with pytest.raises(ExportError, match="is not the network"):
        Onnx().write(prepared(cnn), path, images=IMAGES, metadata={})
    assert path.read_bytes() == b"the old one"


def test_a_model_that_is_not_valid_is_never_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(model: onnx.ModelProto, **settings: object) -> onnx.ModelProto:
        broken = onnx.ModelProto()
        broken.CopyFrom(model)
        broken.graph.node.append(onnx.helper.make_node("Neg", ["nowhere"], ["x"]))
        return broken

    monkeypatch.setattr(onnx_format, "compact", wrong)
    with pytest.raises(ExportError, match=r"the compact model is not valid ONNX: .*nowhere"):
        Onnx().write(prepared(mlp), tmp_path / "model.onnx", images=IMAGES, metadata={})
    assert not list(tmp_path.iterdir())


def test_a_disk_that_loses_bytes_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lossy(path: Path, data: bytes) -> None:
        path.write_bytes(data[:-1])

    monkeypatch.setattr(onnx_writing, "write_bytes", lossy)
    with pytest.raises(ExportError, match=r"model\.onnx: the disk gave back other bytes"):
        Onnx().write(prepared(mlp), tmp_path / "model.onnx", images=IMAGES, metadata={})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        Onnx().write(prepared(mlp), tmp_path / "taken" / "model.onnx", images=IMAGES, metadata={})


@pytest.mark.parametrize(
    "images", [torch.rand(0, 3, 8, 8), torch.rand(4), torch.ones(2, 3, dtype=torch.uint8)]
)
def test_images_that_cannot_be_compared_on_are_refused(images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"must be floating point \[batch, \.\.\.\], at least one; got"):
        Onnx().write(mlp(), tmp_path / "model.onnx", images=images, metadata={})


def test_networks_too_large_for_one_file_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(30_000, 18_000))
    with pytest.raises(ExportError, match=r"holds at most 2 GB; this network has 2\.2 GB of weights"):
        Onnx().write(network, tmp_path / "model.onnx", images=torch.rand(1, 30_000), metadata={})


def test_a_network_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    network = mlp()
    network.cached = nn.Linear(2, 2)(torch.rand(1, 2))  # carries a graph
    with pytest.raises(
        ExportError, match=r"Sequential cannot be copied to the CPU: RuntimeError: .*deepcopy"
    ):
        Onnx().write(network, tmp_path / "model.onnx", images=IMAGES, metadata={})


@pytest.mark.parametrize(
    "settings", [{"opset": 17}, {"opset": 24}, {"ir_version": 7}, {"ir_version": 11}, {"style": "tiny"}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Onnx.model_validate(settings)


def test_the_format_is_found_by_its_name() -> None:
    assert Format.find("onnx") == Onnx()
    assert Format.find(Onnx(style="dense", opset=20).model_dump()) == Onnx(style="dense", opset=20)


@pytest.mark.parametrize("values", ["float16", "int8", "int6", "int4"])
@pytest.mark.parametrize("make", [Residual, Normalizing])
def test_a_file_of_fewer_bits_computes_the_network_with_the_weights_that_come_back(
    make: Callable[[], nn.Module], values: ValueType, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network, images = make().eval(), torch.rand(6, 3, 8, 8)
    plain = Onnx().write(network, tmp_path / "plain.onnx", images=images, metadata={})
    written = Onnx(values=values).write(network, tmp_path / "small.onnx", images=images, metadata={})
    assert written.size_bytes < plain.size_bytes
    assert written.dense_size_bytes == pytest.approx(plain.dense_size_bytes, abs=60)
    assert written.details["values"] == values
    rounded = round_values(fold_batchnorm(network, images).network, values).network
    session = OnnxSession(written.path)
    with torch.no_grad():
        torch.testing.assert_close(session(images), rounded(images), rtol=1e-4, atol=1e-4)
        moved = float((rounded(images) - network(images)).abs().max() / network(images).abs().max())
    assert float(written.details["rounding_moved_logits"]) == pytest.approx(moved, rel=0.02)
    assert 0 < moved < 0.5
    twin = read_twin(written.path, session, images)
    assert twin.largest_difference < 1e-5


def test_dense_files_store_float32() -> None:
    with pytest.raises(ValidationError, match="values=int8 need style compact"):
        Onnx(style="dense", values="int8")
    assert Format.find({"kind": "onnx", "values": "int4"}) == Onnx(values="int4")
