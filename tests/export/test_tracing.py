import logging
import re
import warnings
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export.tracing import trace


def test_the_model_is_plain_onnx_with_a_batch_of_any_size(capfd: pytest.CaptureFixture[str]) -> None:
    network, images = nn.Linear(4, 3).eval(), torch.rand(1, 4)
    random = torch.get_rng_state()
    levels = [logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = trace(network, images, opset=19)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 19)]
    (entry,), (logits,) = model.graph.input, model.graph.output
    assert (entry.name, logits.name) == ("images", "logits")
    for end, size in ((entry, 4), (logits, 3)):
        batch, features = end.type.tensor_type.shape.dim
        assert batch.dim_param
        assert features.dim_value == size
    assert {tensor.name for tensor in model.graph.initializer} == {"network.weight", "network.bias"}
    assert torch.equal(torch.get_rng_state(), random)
    assert [logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript")] == levels
    assert capfd.readouterr() == ("", "")


class BranchesOnPixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images if bool(images.sum() > 0) else -images


class FixesTheBatch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.view(2, -1)


class LeavesTorch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(images.numpy())


class HasNoOnnxOperator(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = torch.special.bessel_j0(images)
        return outputs


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (BranchesOnPixels(), "data-dependent"),
        (FixesTheBatch(), r"Constraints violated \(batch\)"),
        (LeavesTorch(), "numpy"),
        (HasNoOnnxOperator(), "bessel_j0"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_reason_and_advice(
    network: nn.Module, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError) as caught:
        trace(network.eval(), torch.rand(3, 4), opset=18)
    message = str(caught.value)
    assert message.startswith(f"{type(network).__name__} cannot be exported to ONNX: ")
    assert re.search(reason, message)
    assert message.endswith("no batch size written as a number.")
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_another_opset_than_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    export: Callable[..., Any] = torch.onnx.export

    def stubborn(*args: object, **settings: object) -> object:
        return export(*args, **{**settings, "opset_version": 18})  # what torch does where it cannot convert

    monkeypatch.setattr(torch.onnx, "export", stubborn)
    with pytest.raises(ExportError, match=r"asked torch's exporter for opset 21; got 18\. Choose opset 18"):
        trace(nn.Linear(4, 3).eval(), torch.rand(1, 4), opset=21)
