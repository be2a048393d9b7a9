"""Training on weights, and inputs of layers, as a quantised file will round them."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict
from torch import Tensor, nn

if TYPE_CHECKING:
    from robustcompress.training.step import Overrides

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_STEPS = {4: 7, 6: 31, 7: 64, 8: 127}
"""Largest whole number by bits, as files have it: 7 bits are ONNX Runtime's reduced range of 8."""
_LEVELS = 255


class Quantisation(BaseModel):
    """What the attack and the loss see of a network in whole numbers.

    Attributes:
        weight_bits: Of weights, which are symmetric with a scale for each output channel: 8, 6 and 4 are the
            grids of ``onnx`` with values int8, int6 and int4, 7 is that of ``onnx_int8``.
        activations: Whether the inputs of convolutions and linear layers are rounded to bytes too, over the
            range that they span in the batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    weight_bits: Literal[4, 6, 7, 8] = 8
    activations: bool = False


_NAMED = {
    "int8": Quantisation(weight_bits=8),
    "int6": Quantisation(weight_bits=6),
    "int4": Quantisation(weight_bits=4),
    "onnx_int8": Quantisation(weight_bits=7, activations=True),
}


def _find(value: object) -> object:
    if isinstance(value, str):
        if value not in _NAMED:
            known = ", ".join(_NAMED)
            raise ValueError(f"expected one of {known}, or a mapping with weight_bits; got {value!r}")
        return _NAMED[value]
    return value


QuantisationField: TypeAlias = Annotated[Quantisation, BeforeValidator(_find)]
"""Also by name, for what the file will be: ``int8``, ``int6``, ``int4`` (weights) and ``onnx_int8`` (all)."""


class _StraightThrough(torch.autograd.Function):
    """What ``values`` are rounded to, with the gradient of ``values``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """Return ``weight`` on the grid that a file of so many bits has for it.

    Each row (output channel) has steps of its largest weight over 127 (8 bits), 64 (7), 31 (6) or 7 (4).
    Zeros stay zero, and rounding twice changes nothing more than the last bit. Batch normalisation that is
    folded into the layer later multiplies rows by a number, and so their steps: the whole numbers stay.

    Args:
        weight: Floating point ``[rows, ...]``.
        bits: 4, 6, 7 or 8.

    Returns:
        The same shape. The gradient passes straight through.

    Source:
        Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3; Bengio et al. 2013,
        https://arxiv.org/abs/1308.3432, for the gradient. Differs: symmetric and per channel, as in
        Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 3.1.
    """
    if weight.numel() == 0:
        return weight
    seen, steps = weight.detach(), _STEPS[bits]
    largest = seen.reshape(len(seen), -1).abs().amax(1)
    scale = _usable(largest / steps).reshape(-1, *[1] * (seen.ndim - 1))
    rounded = (seen / scale).round().clamp(-steps, steps) * scale
    return _straight_through(weight, rounded + 0.0)  # a sum makes -0.0 positive


def rounded_activations(values: Tensor) -> Tensor:
    """Return ``values`` in 256 levels over the range that they span, zero included and exact.

    The gradient passes straight through: nothing lies outside the range.

    Args:
        values: Floating point, any shape.

    Source:
        Jacob et al. 2018, https://arxiv.org/abs/1712.05877, equation 1 and section 3.1. Differs: the range is
        the batch's own, not a moving average, so that there is no state; a file's is fixed by calibration.
    """
    if values.numel() == 0:
        return values
    seen = values.detach()
    lowest, highest = seen.amin().clamp(max=0), seen.amax().clamp(min=0)
    scale = _usable((highest - lowest) / _LEVELS)
    zero = (-lowest / scale).round()
    codes = ((seen / scale).round() + zero).clamp(0, _LEVELS)
    return _straight_through(values, (codes - zero) * scale)


def _usable(scale: Tensor) -> Tensor:
    """Return 1 in place of steps that are zero or too small to divide by."""
    return torch.where(scale > torch.finfo(scale.dtype).tiny, scale, 1)


def _straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    found: Tensor = _StraightThrough.apply(values, rounded)  # type: ignore[no-untyped-call]  # torch's own
    return found


def round_inputs(network: nn.Module) -> None:
    """Have the inputs of all convolutions and linear layers of ``network`` rounded from now on."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rounded_activations(inputs[0]), *inputs[1:])

    for module in network.modules():
        if isinstance(module, _LAYERS):
            module.register_forward_pre_hook(hook)


class QuantisedWeights:
    """Overrides of a training stage that put weights on a grid, masked first if there are masks.

    Args:
        masks: Other overrides, which are applied before; ``None`` if there are none.
        model: Weights of its convolutions and linear layers are rounded.
        settings: How.
    """

    def __init__(self, masks: "Overrides | None", model: nn.Module, settings: Quantisation) -> None:
        self._masks = masks
        self._bits = settings.weight_bits
        layers = {id(module.weight) for module in model.modules() if isinstance(module, _LAYERS)}
        self._names = [name for name, tensor in model.named_parameters() if id(tensor) in layers]

    def tensors(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the masked and rounded parameters, by name."""
        effective = self._masks.tensors(parameters) if self._masks else {}
        for name in self._names:
            effective[name] = rounded_weight(effective.get(name, parameters[name]), self._bits)
        return effective

    @torch.no_grad()
    def bake(self, model: nn.Module) -> None:
        """Put the rounded weights into ``model`` itself."""
        parameters = dict(model.named_parameters())
        effective = self.tensors(parameters)
        for name in self._names:
            parameters[name].copy_(effective[name])

    def learnable(self) -> Iterator[nn.Parameter]:
        """Yield what the masks learn."""
        return self._masks.learnable() if self._masks else iter(())

    def penalty(self) -> Tensor | None:
        """Return the masks' term of the loss, if any."""
        return self._masks.penalty() if self._masks else None

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell the masks."""
        if self._masks:
            self._masks.before_step(optimizer)

    def after_step(self) -> None:
        """Tell the masks."""
        if self._masks:
            self._masks.after_step()

    def after_epoch(self, validation_robust: float | None) -> None:
        """Tell the masks."""
        if self._masks:
            self._masks.after_epoch(validation_robust)

    def state(self) -> dict[str, Tensor]:
        """Return the masks' state: rounding has none."""
        return self._masks.state() if self._masks else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Give the masks their state back."""
        if self._masks:
            self._masks.restore(state)
