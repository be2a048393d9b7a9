"""Find the first layer in which two networks that should agree do not."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.pruning.copies import run


@dataclass(frozen=True)
class Difference:
    """Where two networks part.

    Attributes:
        layer: Name of the module; empty for the network itself.
        reason: What is different about its outputs.
    """

    layer: str
    reason: str


def relative_difference(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference over the largest expected value.

    Infinity if the shapes differ, a value is not finite, or only the expected ones are all zero.
    """
    if expected.shape != actual.shape or not bool((expected.isfinite() & actual.isfinite()).all()):
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    difference, largest = float((expected - actual).abs().max()), float(expected.abs().max())
    if difference == 0:
        return 0.0
    return difference / largest if largest > 0 else float("inf")


@torch.no_grad()
def first_difference(
    large: nn.Module,
    small: nn.Module,
    inputs: Tensor,
    kept: Mapping[str, Tensor],
    *,
    tolerance: float,
    skip: Collection[str] = (),
) -> Difference | None:
    """Return the first layer, in order of execution, whose outputs differ between two networks.

    Args:
        large: The network before channels were removed.
        small: The network after.
        inputs: float ``[batch, ...]``.
        kept: For each layer that lost output channels, the int64 indices of those it kept.
        tolerance: Largest difference allowed, relative to the largest output of the layer.
        skip: Layers whose outputs may differ, because what follows them makes up for it.

    Returns:
        None if every comparable output agrees. Modules between layers, whose outputs may be smaller in
        ways that are not known here, are compared only where the shapes are equal.
    """
    expected = _Recorder(large, inputs)
    actual = _Recorder(small, inputs)
    for key, output in expected.outputs.items():
        layer = key[0]
        other = actual.outputs.get(key)
        if other is None:
            failed = layer if actual.failure is None else actual.innermost
            return Difference(failed, f"does not run any more ({actual.failure or 'it is not called'})")
        if layer in skip:
            continue
        known = layer in kept
        if known:
            axis = -1 if isinstance(large.get_submodule(layer), nn.Linear) else 1
            output = output.index_select(axis, kept[layer].to(output.device))
        if not known and output.shape != other.shape and layer:
            continue
        difference = relative_difference(output, other)
        if difference > tolerance:
            return Difference(layer, f"puts out something else, by {difference:.2g} of its largest output")
    return None


class _Recorder:
    """Outputs of every module of one forward pass, by name and number of the call, in order of their end."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        self.outputs: dict[tuple[str, int], Tensor] = {}
        self.failure: str | None = None
        self._running: list[str] = []
        self.innermost = ""
        handles: list[Any] = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave(name)))
        try:
            run(model, inputs)
        except ModelError as error:
            self.failure = str(error.__cause__)
            self.innermost = self._running[-1] if self._running else ""
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: object) -> None:
            self._running.append(name)

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            self._running.pop()
            if isinstance(output, Tensor):
                call = sum(layer == name for layer, _ in self.outputs)
                # A copy, because an in-place activation that follows would overwrite it.
                self.outputs[name, call] = output.clone()

        return hook
