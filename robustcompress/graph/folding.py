"""Fold batch normalisation into the layer before it, where that is exact."""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the class that BatchNorm1d to 3d share

from robustcompress.errors import ModelError

Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear

# Dimensions of a layer's output whose dimension 1 holds the features that batch normalisation counts.
_OUTPUT_DIMS: dict[type[nn.Module], int] = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Folding:
    """What became of a network's batch normalisation.

    Attributes:
        network: A copy in eval mode. Folded normalisations are ``nn.Identity`` under their old names.
        folded: How many were folded.
        left: Names of the batch normalisations that stay, because nothing before them can take them up.
        skipped_reason: Why the network could not be looked at and nothing was folded; ``None`` if it could.
    """

    network: nn.Module
    folded: int
    left: tuple[str, ...]
    skipped_reason: str | None = None


def fold_batchnorm(model: nn.Module, example_inputs: Tensor | None = None) -> Folding:
    """Return a copy of ``model`` in eval mode with batch normalisation folded into the layer before it.

    A normalisation is folded if it takes its input directly from a convolution or linear layer, that
    output goes nowhere else, and both are plain modules that are called once and whose parameters nothing
    else reads. Any other one, as in pre-activation blocks, stays. Weights that are zero stay exactly +0.0;
    the arithmetic is float64, stored in the layer's own type.

    Args:
        model: Any module; it is not changed.
        example_inputs: ``[batch, ...]``. Batch normalisation after a linear layer acts on the layer's
            features only if its input is ``[batch, features]``, which is known from a run alone: without
            example inputs it is left as it is.

    Returns:
        The copy, whole but unfolded where ``torch.fx`` cannot trace the network.

    Raises:
        ModelError: If the network cannot be called with ``example_inputs``.
    """
    network = copy.deepcopy(model).eval()
    norms = [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return Folding(network, folded=0, left=())
    pairs, reason = foldable_pairs(network, example_inputs)
    left = set(norms)
    for pair in pairs:
        if _absorb(pair.layer, pair.norm):
            remove_norm(network, pair)
            left.discard(pair.norm_name)
    kept = tuple(name for name in norms if name in left)
    return Folding(network, folded=len(norms) - len(kept), left=kept, skipped_reason=reason)


@dataclass(frozen=True)
class FoldablePair:
    """A layer and the batch normalisation right after it, which the layer can take up exactly."""

    layer: Layer
    norm: _BatchNorm
    norm_name: str


def foldable_pairs(
    network: nn.Module, example_inputs: Tensor | None = None
) -> tuple[tuple[FoldablePair, ...], str | None]:
    """Return the pairs that :func:`fold_batchnorm` would fold, and why the network could not be looked at.

    Args:
        network: In eval mode; not changed.
        example_inputs: As for :func:`fold_batchnorm`.

    Raises:
        ModelError: If the network cannot be called with ``example_inputs``.
    """
    try:
        # A copy: a forward that stores what it computes would leave traces in the network.
        graph = fx.Tracer().trace(copy.deepcopy(network))
    except Exception as error:  # noqa: BLE001  # tracing runs the user's own code, which may raise anything
        return (), f"torch.fx cannot trace {type(network).__name__}: {_first_line(error)}"
    modules = dict(network.named_modules(remove_duplicate=False))
    names = list(_exact_pairs(graph, modules))
    dims = _output_dims(network, [modules[layer] for layer, _ in names], example_inputs)
    found: list[FoldablePair] = []
    for layer_name, norm_name in names:
        layer, norm = modules[layer_name], modules[norm_name]
        assert isinstance(layer, Layer)
        assert isinstance(norm, _BatchNorm)
        known = dims.get(id(layer), None if isinstance(layer, nn.Linear) else _OUTPUT_DIMS[type(layer)])
        tracked = norm.running_mean is not None and norm.running_var is not None
        if known == _OUTPUT_DIMS[type(layer)] and tracked and norm.num_features == layer.weight.shape[0]:
            found.append(FoldablePair(layer, norm, norm_name))
    return tuple(found), None


def remove_norm(network: nn.Module, pair: FoldablePair) -> None:
    """Put an identity in place of a normalisation that its layer has taken up."""
    _replace(network, pair.norm_name, nn.Identity().eval())


def folded_values(
    weight: Tensor, bias: Tensor | None, norm: _BatchNorm, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a layer and its normalisation in eval mode together, in ``dtype``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = norm.running_mean.to(dtype)
    scale = torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.to(dtype)
    shift = -mean * scale
    if norm.affine:
        shift = norm.bias.to(dtype) - mean * scale
    if bias is not None:
        shift = shift + bias.to(dtype) * scale
    return weight.to(dtype) * scale.reshape(-1, *[1] * (weight.ndim - 1)), shift


def _exact_pairs(graph: fx.Graph, modules: dict[str, nn.Module]) -> Iterator[tuple[str, str]]:
    """Yield (layer, normalisation) names where folding needs nothing but the output's dimensions."""
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def plain(name: str) -> bool:
        module = modules[name]
        hooked = (
            module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module.training
        )
        return calls[id(module)] == 1 and name not in read and not hooked

    for node in graph.nodes:
        if node.op != "call_module" or type(modules[str(node.target)]) not in _NORMS:
            continue
        source = node.args[0] if len(node.args) == 1 else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        layer, norm = str(source.target), str(node.target)
        # Exact types: a subclass or a parametrization may compute something else from the weight.
        if type(modules[layer]) in _OUTPUT_DIMS and plain(layer) and plain(norm):
            yield layer, norm


def _output_dims(
    network: nn.Module, layers: list[nn.Module], example_inputs: Tensor | None
) -> dict[int, int]:
    """Return how many dimensions the output of each layer has, by identity; empty without examples."""
    if example_inputs is None or not layers:
        return {}
    found: dict[int, int] = {}

    def note(module: nn.Module, inputs: object, outputs: Tensor) -> None:
        found[id(module)] = outputs.ndim

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            network(example_inputs)
    except Exception as error:  # whatever the user's own code raises
        raise ModelError(
            f"the network cannot be called with images {list(example_inputs.shape)}: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return found


def _absorb(layer: Layer, norm: _BatchNorm) -> bool:
    """Give ``layer`` the weight and bias of layer and normalisation together; ``False`` if impossible."""
    with torch.no_grad():
        weight, shift = folded_values(layer.weight, layer.bias, norm, torch.float64)
        # Adding zero turns -0.0, the product of a removed weight and a negative scale, into +0.0.
        folded = [tensor.to(layer.weight.dtype) + 0.0 for tensor in (weight, shift)]
    if not all(bool(tensor.isfinite().all()) for tensor in folded):
        return False
    # New parameters, not new values: another layer may share the old ones.
    learns = layer.weight.requires_grad
    layer.weight, layer.bias = (nn.Parameter(tensor, requires_grad=learns) for tensor in folded)
    return True


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _first_line(error: BaseException) -> str:
    return next(chain(filter(None, (line.strip() for line in str(error).splitlines())), ["no reason given"]))
