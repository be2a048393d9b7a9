"""Latency of a network before it exists: its layers' shapes, looked up in a cost table."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustcompress.export.cost_table import CostTable, LayerShape, total_ms
from robustcompress.pruning.copies import private_copy, run
from robustcompress.pruning.costs import CostForm
from robustcompress.pruning.patterns import PRUNABLE


def latency_of(
    model: nn.Module, example_inputs: Tensor, macs: CostForm, table: CostTable
) -> Callable[[Sequence[int]], float]:
    """Return the function from kept units to the sum of all layers' milliseconds for one image.

    Args:
        model: Dense; left as it is.
        example_inputs: float ``[batch, ...]``; the first image is used.
        macs: Of the network's costs: knows how wide each layer is.
        table: Asked for every shape.
    """
    dense = layer_shapes(model, example_inputs)

    def latency(kept: Sequence[int]) -> float:
        widths = macs.shapes(kept)
        shapes = [_narrowed(shape, *widths[name]) for name, calls in dense.items() for shape in calls]
        return total_ms(table, shapes)

    return latency


def layer_shapes(model: nn.Module, example_inputs: Tensor) -> dict[str, list[LayerShape]]:
    """Return the shape of every call of a convolution or linear layer with one image, by layer name."""
    found: dict[str, list[LayerShape]] = {}
    twin = private_copy(model).eval()
    names: dict[nn.Module, str] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        found.setdefault(names[module], []).append(_shape(module, inputs[0]))

    for name, module in twin.named_modules():
        if isinstance(module, PRUNABLE):
            names[module] = name
            module.register_forward_hook(note)
    with torch.no_grad():
        run(twin, example_inputs[:1])
    return found


def _shape(module: nn.Module, images: Tensor) -> LayerShape:
    if isinstance(module, nn.Linear):
        rows = images.numel() // module.in_features
        return LayerShape("linear", module.in_features, module.out_features, rows=rows)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return LayerShape(
        "conv",
        module.in_channels,
        module.out_channels,
        tuple(module.kernel_size),
        tuple(module.stride),
        _padding(module),
        tuple(module.dilation),
        tuple(images.shape[2:]),
        module.groups,
    )


def _padding(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    """Return the padding at either end; ``same`` is rounded down where the ends differ."""
    if isinstance(module.padding, str):
        sides = zip(module.kernel_size, module.dilation, strict=True)
        return tuple(
            dilation * (side - 1) // 2 if module.padding == "same" else 0 for side, dilation in sides
        )
    return tuple(module.padding)


def _narrowed(shape: LayerShape, outputs: int, columns: int) -> LayerShape:
    """Return the layer with so many outputs and so many inputs in each group."""
    if shape.groups == 1:
        return replace(shape, inputs=columns, outputs=outputs)
    if columns == shape.inputs // shape.groups:
        # Whole groups go: in a depthwise convolution every channel is one.
        groups = max(1, shape.groups * outputs // shape.outputs)
        return replace(shape, inputs=groups * columns, outputs=outputs, groups=groups)
    return replace(shape, inputs=shape.groups * columns, outputs=outputs)
