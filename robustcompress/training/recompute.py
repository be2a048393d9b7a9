"""Keep only the inputs of a network's blocks for the backward pass, and compute the rest again.

Memory for activations falls from the sum over all layers to the blocks' inputs plus one block; the cost
is one more forward pass.
"""

import math
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_activations(network: nn.Module) -> int:
    """Make the blocks of ``network`` recompute their activations, in place; return how many blocks.

    With n layers that have parameters, blocks of up to about sqrt(n) of them are formed along the module
    tree; runs of single layers in an ``nn.Sequential`` are cut likewise.

    Source:
        Chen et al. 2016, https://arxiv.org/abs/1604.06174, section 3: sqrt(n) segments of sqrt(n) layers.
    """
    target = max(2, math.ceil(math.sqrt(_layers(network))))
    return _divide(network, target)


def _layers(module: nn.Module) -> int:
    return sum(1 for part in module.modules() if any(True for _ in part.parameters(recurse=False)))


def _divide(module: nn.Module, target: int) -> int:
    blocks = 0
    singles = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    run: list[nn.Module] = []
    for child in module.children():
        size = _layers(child)
        if size > target:
            blocks += _divide(child, target)
        elif size > 1:
            _recompute(child)
            blocks += 1
        elif singles:
            run.append(child)
    if singles and sum(_layers(child) for child in run) > 1 and len(run) == len(list(module.children())):
        blocks += _cut(module, target)
    return blocks


def _recompute(module: nn.Module) -> None:
    """Let one module keep its inputs only."""
    # An instance attribute: hooks, which run in __call__, stay outside and run once.
    module.forward = _recomputed(module.forward, [module])


def _cut(sequence: nn.Module, target: int) -> int:
    """Let an ``nn.Sequential`` of single layers run in pieces that keep their inputs only."""
    pieces: list[list[nn.Module]] = [[]]
    for child in sequence.children():
        if _layers(child) and sum(map(_layers, pieces[-1])) == target:
            pieces.append([])
        pieces[-1].append(child)
    runs = [_recomputed(_chained(piece), piece) for piece in pieces]

    def forward(value: Any) -> Any:
        for run in runs:
            value = run(value)
        return value

    sequence.forward = forward
    return len(runs)


def _chained(modules: list[nn.Module]) -> Callable[..., Any]:
    def forward(value: Any) -> Any:
        for module in modules:
            value = module(value)
        return value

    return forward


def _recomputed(forward: Callable[..., Any], modules: list[nn.Module]) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _statistics_kept(modules)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


@contextmanager
def _statistics_kept(modules: list[nn.Module]) -> Generator[None]:
    """Undo what the body does to buffers: a forward pass that is repeated must not count twice."""
    # In eval mode nothing moves, and a write would spoil what backward passes have saved.
    buffers = [buffer for module in modules if module.training for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
