"""Rounding in training against closed forms, and whole runs of the training loop with it."""

from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from torch import Tensor, nn

from robustcompress.errors import InterruptedRunError
from robustcompress.export.values import code
from robustcompress.pruning.masking import Masking
from robustcompress.training.objectives import Moment, Natural, StepView
from robustcompress.training.quantisation import (
    Quantisation,
    QuantisedWeights,
    round_inputs,
    rounded_activations,
    rounded_weight,
)
from robustcompress.training.settings import StageSettings
from robustcompress.training.step import Stepper
from tests.training.test_loop import THREAT, assert_same, masking_of, network, tensors, train

WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4),
    elements=st.floats(-1000, 1000, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6),
)


def on_grid(masks: Masking | None, model: nn.Module, settings: Quantisation) -> Masking:
    """Return overrides that the loop's own tests take."""
    return cast(Masking, QuantisedWeights(masks, model, settings))


def test_a_row_has_steps_of_its_largest_weight() -> None:
    weight = torch.tensor([[7.0, -3.4, 3.6, 0.49], [-0.7, 0.14, 0.0, -0.06]])
    expected = torch.tensor([[7.0, -3.0, 4.0, 0.0], [-0.7, 0.1, 0.0, -0.1]])
    assert torch.allclose(rounded_weight(weight, 4), expected, atol=1e-6)


@given(weight=WEIGHTS, bits=st.sampled_from([(4, 7), (6, 31), (7, 64), (8, 127)]))
def test_rounded_weights_lie_on_the_grid_and_zeros_stay_zero(
    weight: np.ndarray[Any, np.dtype[np.float32]], bits: tuple[int, int]
) -> None:
    given_weight, steps = torch.from_numpy(weight), bits[1]
    found = rounded_weight(given_weight, bits[0])
    rows, wide = found.flatten(1).double(), given_weight.flatten(1).double()
    step = wide.abs().amax(1, keepdim=True) / steps
    whole = rows / torch.where(step == 0, 1, step)
    assert torch.allclose(whole, whole.round(), atol=1e-4)
    assert bool(((rows - wide).abs() <= 0.5001 * step).all())
    assert not found[given_weight == 0].any()
    assert not torch.signbit(found[found == 0]).any()
    assert torch.allclose(rounded_weight(found, bits[0]), found, rtol=1e-6)


def test_the_gradient_passes_straight_through() -> None:
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    factors = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    found = rounded_weight(weight, 4)
    (factors * found.square()).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, (2 * factors * found).detach())  # of the rounded weight, not the weight
    assert not torch.equal(found, weight)


@pytest.mark.parametrize(("bits", "kind"), [(8, "int8"), (6, "int6"), (4, "int4")])
def test_a_file_of_as_many_bits_holds_rounded_weights_as_they_are(bits: int, kind: Any) -> None:
    weight = torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    weight[weight.abs() < 0.5] = 0
    rounded = rounded_weight(weight, bits)
    factors = torch.linspace(-3, 3, 16).reshape(
        -1, 1, 1, 1
    )  # what batch normalisation does when it is folded
    for scaled in (rounded, rounded * factors):
        coded = code(scaled.numpy(), kind)
        steps = {8: 127, 6: 31, 4: 7}[bits]
        largest = scaled.abs().flatten(1).amax(1).reshape(-1, 1, 1, 1)
        assert np.array_equal(coded.codes, (scaled * steps / largest).round().numpy())
        # Scales are stored in 11 bits.
        assert np.allclose(coded.values, scaled.numpy(), rtol=2**-11)


def test_weights_that_are_empty_zero_or_tiny_are_rounded_without_a_division_by_zero() -> None:
    for weight in (torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(2, 3), torch.full((2, 3), 1e-44)):
        found = rounded_weight(weight, 8)
        assert found.shape == weight.shape
        assert not found.any()


@given(
    values=hnp.arrays(
        np.float32, hnp.array_shapes(max_dims=3), elements=st.floats(-50, 50, width=32, allow_subnormal=False)
    )
)
def test_activations_have_256_levels_and_an_exact_zero(values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    given_values = torch.from_numpy(values)
    found = rounded_activations(given_values)
    step = float(given_values.amax().clamp(min=0) - given_values.amin().clamp(max=0)) / 255
    # The zero point is a whole number, too: an end of the range may move by half a step more.
    assert float((found - given_values).abs().max()) <= 1.001 * step + 1e-30
    assert len(found.unique()) <= 256
    assert not found[given_values == 0].any()


def test_the_gradient_passes_straight_through_activations() -> None:
    values = torch.linspace(-1, 2, 50).requires_grad_(True)
    rounded_activations(values).square().sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, 2 * rounded_activations(values).detach())
    assert len(rounded_activations(torch.zeros(0))) == 0


class Spy(Natural):
    """Cross-entropy; remembers what the attack's network says."""

    said: ClassVar[list[Tensor]] = []

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        self.said.append(view.frozen(images).detach())
        return super().loss(view, images, labels)


@pytest.mark.parametrize("activations", [False, True])
def test_attack_and_loss_see_rounded_weights_and_the_step_moves_the_weights_themselves(
    activations: bool,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    images, labels = torch.rand(6, 1, 2, 2), torch.arange(6) % 3
    settings = Quantisation(weight_bits=4, activations=activations)
    parameters = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    rounded = {
        name: rounded_weight(tensor, 4) if tensor.ndim == 2 else tensor for name, tensor in parameters.items()
    }
    for tensor in rounded.values():
        tensor.requires_grad_(True)

    def logits() -> Tensor:
        inputs = images.flatten(1)
        hidden = F.linear(
            rounded_activations(inputs) if activations else inputs, rounded["1.weight"], rounded["1.bias"]
        ).relu()
        last = rounded_activations(hidden) if activations else hidden
        return F.linear(last, rounded["3.weight"], rounded["3.bias"])

    expected = logits()
    F.cross_entropy(expected, labels).backward()
    spy = Spy()
    spy.said.clear()
    stepper = Stepper(
        model,
        QuantisedWeights(None, model, settings),
        objective=spy,
        threat=THREAT,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        device=torch.device("cpu"),
        precision="fp32",
        clip_gradient=None,
        seed=0,
        rounds_inputs=activations,
    )
    stepper.step(images, labels, Moment(0, 1, 0, 1))
    assert torch.allclose(spy.said[0], expected, atol=1e-6)
    for name, tensor in model.named_parameters():
        gradient = rounded[name].grad
        assert gradient is not None
        assert torch.allclose(tensor, parameters[name] - 0.5 * gradient, atol=1e-6), name


def test_inputs_are_rounded_in_the_network_that_was_given_alone() -> None:
    model = network().eval()
    copy = network().eval()
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(model(images), copy(images))
    round_inputs(copy)
    assert not torch.equal(model(images), copy(images))


def test_masks_stay_and_scores_have_no_part() -> None:
    model = network()
    masking = masking_of(model)
    masking.freeze()
    rounding = QuantisedWeights(masking, model, Quantisation())
    effective = rounding.tensors(dict(model.named_parameters()))
    for site, mask in zip(masking.sites, masking.masks, strict=True):
        assert not effective[f"{site.name}.weight"][~mask].any()
    assert list(rounding.learnable()) == []
    assert rounding.penalty() is None
    assert_same(rounding.state(), masking.state())


def test_baked_weights_are_those_that_were_trained_on() -> None:
    model = network()
    rounding = QuantisedWeights(None, model, Quantisation(weight_bits=6))
    expected = {
        name: t.detach().clone() for name, t in rounding.tensors(dict(model.named_parameters())).items()
    }
    statistics = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in expected}
    rounding.bake(model)
    assert_same(
        {**expected, **statistics}, {name: model.state_dict()[name] for name in (*expected, *statistics)}
    )


@pytest.mark.parametrize("masked", [False, True])
def test_a_run_that_was_stopped_ends_as_an_unbroken_one(masked: bool, tmp_path: Path) -> None:
    settings = {"epochs": 2, "quantise": "onnx_int8"}

    def parts() -> tuple[nn.Module, Masking]:
        model = network()
        masking = masking_of(model) if masked else None
        if masking:
            masking.freeze()
        return model, on_grid(masking, model, Quantisation(weight_bits=7, activations=True))

    unbroken, overrides = parts()
    train(unbroken, overrides=overrides, settings=settings)
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 4

    stopped, overrides = parts()
    with pytest.raises(InterruptedRunError):
        train(stopped, overrides=overrides, settings=settings, checkpoint=tmp_path, stop=stop)
    resumed, overrides = parts()
    train(resumed, overrides=overrides, settings=settings, checkpoint=tmp_path)
    assert_same(tensors(resumed), tensors(unbroken))


def test_rounding_is_part_of_what_is_learnt() -> None:
    rough, model = network(), network()
    train(model, settings={"epochs": 6, "lr": 0.1})
    trained = train(
        rough,
        overrides=on_grid(None, rough, Quantisation(weight_bits=4)),
        settings={"epochs": 6, "lr": 0.1, "quantise": "int4"},
    )
    assert trained.selected is not None
    assert trained.selected.validation_clean is not None
    assert trained.selected.validation_clean >= 0.9
    assert not torch.equal(model.state_dict()["5.weight"], rough.state_dict()["5.weight"])


def test_settings_are_written_by_name_or_in_full() -> None:
    def parsed(value: object) -> Quantisation | None:
        return StageSettings.model_validate({"epochs": 1, "lr": 1, "quantise": value}).quantise

    assert parsed("int8") == parsed({"weight_bits": 8}) == Quantisation(weight_bits=8, activations=False)
    assert parsed("onnx_int8") == Quantisation(weight_bits=7, activations=True)
    assert parsed(None) is None
    with pytest.raises(ValidationError, match="expected one of int8, int6, int4, onnx_int8, or a mapping"):
        parsed("int5")
    with pytest.raises(ValidationError, match="has no bounds to select epochs by"):
        StageSettings(epochs=1, lr=1, select="certified", quantise=Quantisation(activations=True))
