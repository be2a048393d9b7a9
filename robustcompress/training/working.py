"""The networks that a training step runs: private copies, one that learns and one that is attacked.

The user's network is never called in a step. The copies share its parameters and buffers, except where the
step works with other values (masked weights, another memory layout, folded normalisation, bfloat16): those
live in memory of their own that is refreshed once a step, however often the networks then run.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustcompress.graph.folding import Layer, foldable_pairs, folded_values, remove_norm
from robustcompress.training.recompute import recompute_activations
from robustcompress.training.settings import StepSettings


def shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the modules that shares every parameter and buffer, in eval mode.

    Its mode never has to be switched, and statistics that ``model`` updates in place are seen here too.
    """
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo=shared).eval()


@dataclass(frozen=True)
class _Private:
    """A layer of the attacked network whose weight and bias are computed from others'."""

    layer: Layer
    weight: Tensor
    bias: Tensor | None
    norm: _BatchNorm | None

    def refresh(self) -> None:
        weight, bias = self.weight, self.bias
        if self.norm is not None:
            weight, bias = folded_values(weight, bias, self.norm, weight.dtype)
        self.layer.weight.copy_(weight)
        if bias is not None and self.layer.bias is not None:
            self.layer.bias.copy_(bias)


class WorkingNetworks:
    """The learner and the attacked network of one stage.

    Args:
        model: The user's network, on its device; its parameters and buffers are shared.
        effective: A first set of effective values by parameter name, for those that are not the
            parameter's own: masked weights.
        settings: What to do for speed and memory.
        apart: Whether the attacked network's weights have memory of their own, so that they stay while the
            learner's are perturbed within a step.

    Attributes:
        learner: In train mode. Gradients reach ``leaves`` and the model's other parameters.
        attacked: In eval mode, with constant weights: gradients reach the images only.
        leaves: Effective values that the learner works with, by parameter name.
        folded: How many normalisations the attacked network has folded away.
        unfolded_reason: Why the network could not be looked at for folding; ``None`` if it could.
    """

    def __init__(
        self,
        model: nn.Module,
        effective: Mapping[str, Tensor],
        settings: StepSettings,
        *,
        apart: bool = False,
    ) -> None:
        self._channels_last = settings.memory_format == "channels_last"
        parameters = dict(model.named_parameters())
        names = {*effective}
        if self._channels_last:
            names |= {name for name, tensor in parameters.items() if tensor.ndim == 4}
        self.leaves = {name: self._leaf(parameters[name]) for name in parameters if name in names}
        tensors = [*model.parameters(), *model.buffers()]
        memo = {id(tensor): tensor for tensor in tensors}
        memo |= {id(parameters[name]): leaf for name, leaf in self.leaves.items()}
        self.learner = copy.deepcopy(model, memo=memo).train()

        constants: dict[int, Tensor] = {id(buffer): buffer for buffer in model.buffers()}
        self._copies: list[tuple[nn.Parameter, nn.Parameter]] = []
        for parameter in self.learner.parameters():
            # Shares the values, so that the optimizer's updates in place are seen, and asks for no gradient.
            values = parameter.detach()
            constant = nn.Parameter(values.clone() if apart else values, requires_grad=False)
            constants[id(parameter)] = constant
            if apart:
                self._copies.append((constant, parameter))
        self.attacked = copy.deepcopy(self.learner, memo=constants).eval()
        self._private: list[_Private] = []
        self.folded = 0
        self.unfolded_reason: str | None = None
        self._make_private(settings)
        if settings.recompute != "nowhere":
            recompute_activations(self.learner)
        if settings.recompute == "everywhere":
            recompute_activations(self.attacked)

    def _leaf(self, parameter: Tensor) -> nn.Parameter:
        values = torch.empty_like(parameter, memory_format=torch.contiguous_format)
        if self._channels_last and parameter.ndim == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        return nn.Parameter(values)

    def _make_private(self, settings: StepSettings) -> None:
        bf16 = settings.attack_precision == "bf16"
        norms: dict[int, _BatchNorm] = {}
        if settings.fold_norms:
            pairs, self.unfolded_reason = foldable_pairs(self.attacked)
            for pair in pairs:
                norms[id(pair.layer)] = pair.norm
                remove_norm(self.attacked, pair)
            self.folded = len(pairs)
        for layer in list(self.attacked.modules()):
            if type(layer) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear):
                continue
            assert isinstance(layer, Layer)
            norm = norms.get(id(layer))
            if norm is None and not bf16:
                continue
            weight, bias = layer.weight, layer.bias
            dtype = torch.bfloat16 if bf16 else weight.dtype
            layer.weight = nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False)
            if norm is not None or bias is not None:
                values = layer.weight.new_empty(layer.weight.shape[0])
                layer.bias = nn.Parameter(values, requires_grad=False)
            self._private.append(_Private(layer, weight, bias, norm))

    @torch.no_grad()
    def refresh(self, effective: Mapping[str, Tensor]) -> None:
        """Take over effective values and statistics; to be called before each step.

        Args:
            effective: By parameter name, for every name in ``leaves``.
        """
        for name, leaf in self.leaves.items():
            leaf.copy_(effective[name])
            leaf.requires_grad_(effective[name].requires_grad)
        for constant, parameter in self._copies:
            constant.copy_(parameter)
        for private in self._private:
            private.refresh()

    def arranged(self, images: Tensor) -> Tensor:
        """Return the images in the layout that the networks work in."""
        if self._channels_last and images.ndim == 4:
            return images.contiguous(memory_format=torch.channels_last)
        return images
