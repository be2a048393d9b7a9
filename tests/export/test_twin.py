from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from robustcompress.errors import ExportError
from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.session import OnnxSession
from robustcompress.export.twin import read_twin
from robustcompress.robustness.attacks.apgd_t import ApgdT
from robustcompress.robustness.evaluation import evaluate
from robustcompress.robustness.target import Target
from robustcompress.robustness.threat import Threat


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
