from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.session import OnnxSession
from robustcompress.export.twin import read_twin
from robustcompress.robustness.attacks.apgd_t import ApgdT
from robustcompress.robustness.evaluation import evaluate
from robustcompress.robustness.target import Target
from robustcompress.robustness.threat import Threat
from robustcompress.zoo.datasets.fashion_mnist_mini import FashionMnistMini
from robustcompress.zoo.networks import Network
from robustcompress.zoo.networks.resnet18 import Resnet18
from robustcompress.zoo.networks.small_cnn import SmallCnn
from tests.export.test_quantised import quantised_file


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    network.append(nn.Linear(4 * 9, 3))
    network(torch.rand(32, 1, 8, 8))
    return network.eval()


def _model(*nodes: onnx.NodeProto, **constants: np.ndarray) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "somebody elses",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
SHAPE = np.array([0, -1])


@pytest.mark.parametrize("style", ["dense", "compact"])
def test_the_twin_gives_the_sessions_logits_and_gradients_of_the_network(style: str, tmp_path: Path) -> None:
    network, images = _network(), torch.rand(20, 1, 8, 8)
    path = tmp_path / "model.onnx"
    Onnx.model_validate({"style": style}).write(network, path, images=images, metadata={})
    twin = read_twin(path, OnnxSession(path), images)
    assert (twin.images, twin.agreeing) == (20, 1.0)
    assert twin.largest_difference < 1e-5
    gradients = []
    for way in (network, twin.network):
        points = images.clone().requires_grad_()
        gradients.append(torch.autograd.grad(way(points)[:, 0].sum(), points)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_a_file_that_somebody_else_made_is_attacked_through_its_twin() -> None:
    data = _model(
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
        w=WEIGHT,
        shape=SHAPE,
    )
    session, images = OnnxSession(data), torch.rand(50, 1, 2, 2)
    labels = session(images).argmax(1)
    twin = read_twin(data, session, images)
    found = evaluate(
        Target(session, twin.network),
        [(images, labels)],
        threat=Threat(eps=0.1),
        attacks=[ApgdT(steps=20)],
        seed=0,
        device="cpu",
    )
    # The exact worst case of a linear network: each pixel at the end that hurts most.
    weight = torch.from_numpy(WEIGHT).T
    low, high = (images - 0.1).clamp_min(0).flatten(1), (images + 0.1).clamp_max(1).flatten(1)
    rows = weight[labels][:, None] - weight[None]
    margins = (rows * torch.where(rows > 0, low[:, None], high[:, None])).sum(2)
    stands = margins.scatter(1, labels[:, None], 1.0).amin(1) > 0
    rows_found = {m.attack: m.correct for m in found.measurements}
    assert rows_found["APGD-T-20x9"] == int(stands.sum()) < 50


def test_an_operator_that_is_not_understood_is_named() -> None:
    data = _model(
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Sinh", ["flat"], ["bent"], name="odd one"),
        helper.make_node("MatMul", ["bent", "w"], ["y"]),
        w=WEIGHT,
        shape=SHAPE,
    )
    with pytest.raises(ExportError, match=r"'odd one' \(Sinh\)"):
        read_twin(data, OnnxSession(data), torch.rand(2, 1, 2, 2))


def test_a_twin_of_another_file_does_not_pass_the_gate() -> None:
    def linear(weight: np.ndarray) -> bytes:
        return _model(
            helper.make_node("Reshape", ["x", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["y"]),
            w=weight,
            shape=SHAPE,
        )

    other = OnnxSession(linear(WEIGHT * np.float32(1.001)))
    with pytest.raises(ExportError, match=r"differs from ONNX Runtime by 0\.00\d+ of the largest logit"):
        read_twin(linear(WEIGHT), other, torch.rand(4, 1, 2, 2))


# --- Files that round ---


@pytest.fixture(scope="module", params=["small_cnn", "resnet18"])
def trained(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """Return a network of the zoo that has learnt a little, and images that it has not seen."""
    torch.manual_seed(0)
    settings: dict[str, Network] = {
        "small_cnn": SmallCnn(widths=(4, 6), hidden=16),
        "resnet18": Resnet18(in_channels=1, width=4),
    }
    network, data = settings[request.param].build(), FashionMnistMini().load("train")
    images, labels = data.images.float() / 255, data.labels
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    for part in torch.arange(40 * 32).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[part]), labels[part]).backward()
        optimizer.step()
    return network.eval().requires_grad_(False), FashionMnistMini().load("test").images[:200].float() / 255


@pytest.mark.parametrize("per_channel", [False, True])
def test_twins_of_quantised_zoo_networks_are_a_step_off_at_most_now_and_then(
    per_channel: bool, trained: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    network, images = trained
    path = quantised_file(network, images, tmp_path, per_channel=per_channel)
    session = OnnxSession(path)
    twin = read_twin(path, session, images)
    expected = session(images)
    with torch.no_grad():
        differences = (twin.network(images) - expected).abs().amax(1)
    step = float(expected.unique().diff().min())  # logits are whole numbers of steps
    assert twin.rounded
    assert float((differences < step / 100).float().mean()) >= 0.8
    assert float(differences.max()) <= 3.01 * step
    # What is compared is the rounded network: the one it was made from is further off.
    assert float((network(images) - expected).abs().amax(1).median()) > step / 100


def test_a_network_in_half_precision_has_a_twin(trained: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    network, images = trained
    Onnx(style="dense").write(network, tmp_path / "float.onnx", images=images[:4], metadata={})
    data = _in_half(onnx.load(tmp_path / "float.onnx"))
    twin = read_twin(data, OnnxSession(data), images)
    assert twin.rounded
    assert twin.largest_difference < 2e-3
    points = images[:4].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(twin.network(points)[:, 0].sum(), points)
    (expected,) = torch.autograd.grad(network(points)[:, 0].sum(), points)
    # Rounding puts a few ReLUs on their other side.
    assert float((gradient - expected).norm() / expected.norm()) < 0.15


def _in_half(model: onnx.ModelProto) -> bytes:
    """Keep weights and all that moves in float16; images and logits stay float32."""
    graph = model.graph
    first, last = graph.input[0].name, graph.output[0].name
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            halved = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(halved, tensor.name))
    for node in graph.node:
        node.input[:] = ["half images" if name == first else name for name in node.input]
        node.output[:] = ["half logits" if name == last else name for name in node.output]
    del graph.value_info[:]
    graph.node.insert(0, helper.make_node("Cast", [first], ["half images"], to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", ["half logits"], [last], to=TensorProto.FLOAT))
    return bytes(model.SerializeToString())


class Shifted(OnnxSession):
    """A session whose logits are given by a table."""

    table: Tensor

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.table


def _flat(*, whole: bool) -> bytes:
    """Return a file that gives its pixels' first three as logits, rounded to 1/256 or to half precision."""
    rounding = [
        helper.make_node("QuantizeLinear", ["flat", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["back"]),
    ]
    halving = [
        helper.make_node("Cast", ["flat"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["back"], to=TensorProto.FLOAT),
    ]
    return _model(
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        *(rounding if whole else halving),
        helper.make_node("MatMul", ["back", "w"], ["y"]),
        w=np.eye(4, 3, dtype=np.float32),
        shape=SHAPE,
        s=np.array(1 / 256, dtype=np.float32),
        z=np.array(0, dtype=np.uint8),
    )


@pytest.mark.parametrize(("lead", "passes"), [(0.01, True), (0.1, False)])
def test_a_class_may_change_only_where_the_session_all_but_ties(lead: float, passes: bool) -> None:
    data = _flat(whole=True)
    images = torch.tensor([0.5, 0.25, 0.0, 0.0]).repeat(20, 1).reshape(20, 1, 2, 2)
    session = Shifted(data)
    session.table = torch.tensor([0.5, 0.25, 0.0]).repeat(20, 1)
    session.table[3] = torch.tensor([0.5, 0.5 + lead * 0.5, 0.0])  # one of twenty, of another class
    if passes:
        assert read_twin(data, session, images).agreeing == pytest.approx(0.95)
    else:
        with pytest.raises(ExportError, match=r"95\.0% keep their class"):
            read_twin(data, session, images)


def test_half_precision_excuses_no_more_than_its_own_rounding() -> None:
    data, images = _flat(whole=False), torch.rand(20, 1, 2, 2)
    session = Shifted(data)
    session.table = images.flatten(1)[:, :3] * 1.006
    with pytest.raises(
        ExportError, match=r"by 0\.00[56]\d* of the largest logit; at most 0\.005 is rounding"
    ):
        read_twin(data, session, images)
    session.table = images.flatten(1)[:, :3]
    assert read_twin(data, session, images).largest_difference < 1e-3


def test_a_file_of_constant_nodes_and_added_biases_has_a_twin() -> None:
    def constant(name: str, value: np.ndarray) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))

    data = _model(
        constant("shape", SHAPE),
        constant("w", WEIGHT),
        constant("b", WEIGHT[0]),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Add", ["b", "product"], ["y"]),
    )
    images = torch.rand(7, 1, 2, 2)
    twin = read_twin(data, OnnxSession(data), images)
    assert (twin.rounded, twin.agreeing) == (False, 1.0)
    expected = images.flatten(1).numpy() @ WEIGHT + WEIGHT[0]
    np.testing.assert_allclose(twin.network(images).numpy(), expected, rtol=1e-5, atol=1e-6)
