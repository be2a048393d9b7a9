"""N of every M weights, as sparse tensor cores read them: 2:4 and its relatives."""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.pruning.patterns import Pattern, Plan, Site, plan_layers
from robustcompress.pruning.patterns.unstructured import WeightSite


class NMSite(WeightSite):
    """The weights of one layer, of which each group of ``m`` along the inputs keeps ``n``.

    Args:
        name: Of the layer.
        weight: ``[outputs, inputs, *kernel]``; ``inputs`` a multiple of ``m``.
        n: Kept of each group.
        m: Weights of a group.
    """

    def __init__(self, name: str, weight: Tensor, n: int, m: int) -> None:
        super().__init__(name, weight)
        self._n, self._m = n, m
        self.fixed_removed = self.units // m * (m - n)
        self.minimum_kept = self.units - self.fixed_removed

    def select(self, scores: Tensor, removed: int) -> Tensor:
        """Return the mask that keeps the ``n`` largest ``|scores|`` of each group; of equals the later.

        Raises:
            ConfigError: If ``removed`` is not what the pattern removes.
        """
        if removed != self.fixed_removed:
            raise ConfigError(
                f"{self.name!r} loses exactly {self.fixed_removed} weights with {self._n}:{self._m}; "
                f"got {removed}. Use the pattern 'unstructured' for another sparsity."
            )
        # In rows of the inputs: groups are then runs of m neighbours.
        rows = scores.detach().abs().movedim(1, -1)
        order = rows.reshape(-1, self._m).argsort(dim=1, stable=True)
        mask = torch.ones_like(order, dtype=torch.bool)
        mask.scatter_(1, order[:, : self._m - self._n], False)
        return mask.reshape(rows.shape).movedim(-1, 1).contiguous()


class NM(Pattern):
    """Keep exactly ``n`` of every ``m`` consecutive weights along the input channels of a layer.

    A group holds the weights of one output and one kernel position for ``m`` neighbouring inputs: what
    TensorRT asks of convolutions and linear layers, and torch's semi-structured tensors of linear layers.
    The pattern itself says the sparsity, ``1 - n/m`` of every layer that it can be applied to; budgets have
    nothing to choose. Layers whose inputs (of each group of a grouped convolution) are no multiple of ``m``
    stay dense: usually the first layer, and depthwise convolutions.

    Source:
        Mishra et al. 2021, https://arxiv.org/abs/2104.08378, section 3 (2:4); Zhou et al. 2021,
        https://arxiv.org/abs/2102.04010 (n:m).

    Attributes:
        n: Kept weights of each group.
        m: Weights of a group.
    """

    units_are_weights: ClassVar[bool] = True
    n: int = Field(default=2, ge=1)
    m: int = Field(default=4, ge=2)

    @model_validator(mode="after")
    def _removes_something(self) -> Self:
        if self.n >= self.m:
            raise ValueError(f"n must be below m; got {self.n}:{self.m}. 2:4 keeps 2 of every 4 weights.")
        return self

    @property
    def fixed_sparsity(self) -> float | None:
        return 1 - self.n / self.m

    def plan(self, model: nn.Module, example_inputs: Tensor, ignore: Sequence[str]) -> Plan:
        return plan_layers(model, ignore, self._site)

    def _site(self, name: str, layer: nn.Module) -> Site | str:
        weight = layer.get_parameter("weight")
        inputs = weight.shape[1]
        if inputs % self.m:
            of_each = " of each group" if getattr(layer, "groups", 1) > 1 else ""
            return f"its {inputs} input channels{of_each} are no multiple of {self.m}"
        return NMSite(name, weight, self.n, self.m)
