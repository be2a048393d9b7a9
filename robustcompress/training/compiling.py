"""``torch.compile`` that says why where it cannot be had, and goes on without."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

Warn = Callable[[str], None]


class Compiled:
    """A network that runs through ``torch.compile``, or as it is where that fails.

    The first call tries the compiled forward and backward pass out. The trial leaves parameters, gradients
    and buffers as they were.

    Args:
        network: What to run.
        warn: Called once with a sentence if compilation fails.
        cuda_graphs: Replay the kernels of a pass as one CUDA graph, on a GPU. The output of a call is
            then overwritten by the next call.

    Attributes:
        network: What to run.
        active: Whether calls are compiled; ``None`` before the first call.
    """

    def __init__(self, network: nn.Module, *, warn: Warn, cuda_graphs: bool = False) -> None:
        self.network = network
        self.active: bool | None = None
        self._warn = warn
        self._cuda_graphs = cuda_graphs and torch.cuda.is_available()
        self._function: Callable[[Tensor], Any] = network

    def __call__(self, images: Tensor) -> Tensor:
        """Return the network's logits for ``images``."""
        if self.active is None:
            self._try(images)
        if self.active and self._cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return cast(Tensor, self._function(images))

    def _try(self, images: Tensor) -> None:
        buffers = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        learning: list[Tensor] = [
            parameter for parameter in self.network.parameters() if parameter.requires_grad
        ]
        points = images.detach().clone().requires_grad_(not learning)
        try:
            with torch.enable_grad():
                mode = "reduce-overhead" if self._cuda_graphs else "default"
                function = cast("Callable[[Tensor], Any]", torch.compile(self.network, mode=mode))
                logits = function(points)
                torch.autograd.grad(logits.float().sum(), learning or [points], allow_unused=True)
        except Exception as error:  # noqa: BLE001  # compilers fail in many ways; the plain network remains
            self._warn(f"compile does nothing: {type(error).__name__}: {_first_line(error)}")
            self.active = False
        else:
            self._function = function
            self.active = True
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
