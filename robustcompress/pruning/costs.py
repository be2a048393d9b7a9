"""What a network costs as a function of what its sites keep: weights and multiply-adds, exactly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robustcompress.graph.cost import count_macs
from robustcompress.pruning.patterns import PRUNABLE, Site
from robustcompress.pruning.patterns.channel import ChannelSite

Floats = npt.NDArray[np.float64]

_ROUNDING = 1e-12  # of a target that was computed, not given


@dataclass(frozen=True, eq=False)
class CostForm:
    """A cost that is a sum over layers of ``scale * rows * columns``, both linear in what sites keep.

    Rows are a weight's outputs (or, under a mask, its nonzero entries), columns its inputs. Removing
    channels makes rows and columns of several layers go, hence the product.

    Attributes:
        scale: ``[layers]``, what one entry of row and column costs.
        rows: ``[layers, sites + 1]``; the last column is the constant part.
        columns: Likewise.
        units: ``[sites]``, what a site holds when nothing is removed.
        layers: Their names.
    """

    scale: Floats
    rows: Floats
    columns: Floats
    units: Floats
    layers: tuple[str, ...] = ()

    def __call__(self, kept: Sequence[float] | Floats) -> float:
        """Return the cost if every site keeps so many units; exact for whole numbers below 2^53."""
        counts = np.append(np.asarray(kept, float), 1.0)
        return float(self.scale @ ((self.rows @ counts) * (self.columns @ counts)))

    def shapes(self, kept: Sequence[float] | Floats) -> dict[str, tuple[int, int]]:
        """Return rows and columns of every layer if every site keeps so many units."""
        counts = np.append(np.asarray(kept, float), 1.0)
        rows, columns = (self.rows @ counts).round().astype(int), (self.columns @ counts).round().astype(int)
        return dict(zip(self.layers, zip(rows.tolist(), columns.tolist(), strict=True), strict=True))

    @property
    def dense(self) -> float:
        """The cost with nothing removed."""
        return self(self.units)

    def ratio(self, fractions: Tensor, target: float) -> Tensor:
        """Return the cost over ``target``, differentiable, a scalar.

        Args:
            fractions: Kept fraction of every site, ``[sites]``, any float dtype and device.
            target: In the unit of the cost, more than 0.
        """

        def constant(values: Floats) -> Tensor:
            # Through float32 at the earliest here: the products of large counts are divided first.
            return torch.from_numpy(values).to(fractions)

        counts = fractions * constant(self.units)
        rows = constant(self.rows[:, :-1]) @ counts + constant(self.rows[:, -1])
        columns = constant(self.columns[:, :-1]) @ counts + constant(self.columns[:, -1])
        return (constant(self.scale / target) * rows * columns).sum()


@dataclass(frozen=True, eq=False)
class Limit:
    """A cost that may not be exceeded.

    Attributes:
        cost: What costs.
        target: In its unit.
    """

    cost: CostForm
    target: float

    def holds(self, kept: Sequence[float] | Floats) -> bool:
        """Whether a network that keeps so many units of each site is within the limit."""
        return self.cost(kept) <= self.target * (1 + _ROUNDING)


@dataclass(frozen=True, eq=False)
class NetworkCosts:
    """Costs of one network, for one image.

    Attributes:
        weights: Entries of all convolutions' and linear layers' weights that are left: those that are not
            masked, or, where channels go, the entries of the smaller weights. Biases are not counted.
        macs: Multiply-adds of the layers as dense layers. Only removed channels lower them: a layer whose
            weights are zero here and there multiplies as before in every stock runtime.
        effective_macs: Multiply-adds with weights that are not masked.
        limits: What a budget that learns must stay within; where there are none it sets its own.
    """

    weights: CostForm
    macs: CostForm
    effective_macs: CostForm
    limits: tuple[Limit, ...] = ()


def network_costs(model: nn.Module, example_inputs: Tensor, sites: Sequence[Site]) -> NetworkCosts:
    """Return the costs of ``model`` under masks at ``sites``.

    Layers that compute through functions are not seen by the count of multiply-adds; their weights count.
    A weight that several layers share is counted once, its multiply-adds in each of them.

    Args:
        model: Dense; left as it is. On the device of ``example_inputs``.
        example_inputs: float ``[batch, ...]``.
        sites: Of one pattern's plan for this network.

    Raises:
        ModelError: If the network cannot be called with these inputs.
    """
    measured = count_macs(model, example_inputs)
    positions = {name: cost.positions for name, cost in measured.items()}
    owners = {id(parameter): name for name, parameter in model.named_parameters()}
    first: dict[int, str] = {}
    layers: list[_Layer] = []
    for name, module in model.named_modules():
        if isinstance(module, PRUNABLE):
            shape = tuple(module.weight.shape)
            own = dict(module.named_parameters(recurse=False)).get("weight")
            owner = "" if own is None else owners[id(own)]
            counted = own is None or first.setdefault(id(own), name) == name
            layers.append(_Layer(name, shape, owner, positions.get(name, 0), counted))
    return NetworkCosts(
        weights=_form(sites, layers, [int(layer.counted) for layer in layers], masked=True),
        macs=_form(sites, layers, [layer.positions for layer in layers], masked=False),
        effective_macs=_form(sites, layers, [layer.positions for layer in layers], masked=True),
    )


@dataclass(frozen=True)
class _Layer:
    """A convolution or linear layer; ``parameter`` is the model's name for its weight."""

    name: str
    shape: tuple[int, ...]
    parameter: str
    positions: int
    counted: bool


def _form(sites: Sequence[Site], layers: Sequence[_Layer], each: Sequence[int], *, masked: bool) -> CostForm:
    """Return the sum over ``layers``, one entry of whose weights costs ``each``; masked ones nothing."""
    places = _places(sites)
    masks = {site.parameters[0]: i for i, site in enumerate(sites) if not isinstance(site, ChannelSite)}
    scale = np.array(each, float)
    rows, columns = (np.zeros((len(layers), len(sites) + 1)) for _ in range(2))
    for index, layer in enumerate(layers):
        if masked and layer.parameter in masks:
            site = masks[layer.parameter]
            rows[index, site] = math.prod(layer.shape) / sites[site].units
            columns[index, -1] = 1
            continue
        scale[index] *= math.prod(layer.shape[2:])
        for axis, table in ((0, rows), (1, columns)):
            table[index, -1] = layer.shape[axis]  # what no site holds stays
            for site, entries in places.get((layer.name, axis), ()):
                table[index, site] += entries
                table[index, -1] -= entries * sites[site].units
    units = np.array([site.units for site in sites], float)
    return CostForm(scale, rows, columns, units, tuple(layer.name for layer in layers))


def _places(sites: Sequence[Site]) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """Return for each layer and axis which sites' channels lie there, and how many entries each takes."""
    found: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for index, site in enumerate(sites):
        if isinstance(site, ChannelSite):
            for place in site.group.places:
                found.setdefault((place.layer, place.axis), []).append((index, place.positions.shape[1]))
    return found
