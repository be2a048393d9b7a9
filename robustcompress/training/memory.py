"""How much memory a piece of training holds at its peak, counted tensor by tensor."""

import weakref
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive while its body runs, on every device.

    Every operation's results are watched until their storage is freed, those that autograd keeps
    included. Not seen: the libraries' own scratch space, and what an allocator holds in reserve. On a GPU
    ``torch.cuda.max_memory_allocated`` sees the former; this count needs no GPU and fits any device.

    Args:
        held: Tensors that exist already and belong to the count: parameters, buffers, images.

    Attributes:
        held: Bytes of the tensors given.
        peak: Largest number of bytes alive at once so far, those given included.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._alive: dict[int, int] = {}
        self._now = 0
        self.peak = 0
        for tensor in held:
            self._watch(tensor)
        self.held = self._now

    def __enter__(self) -> Self:
        return super().__enter__()  # type: ignore[no-untyped-call,no-any-return]  # torch's own

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_iter(results):
            if isinstance(result, Tensor):
                self._watch(result)
        return results

    def _watch(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self._now += self._alive[key]
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._alive.pop(key)
