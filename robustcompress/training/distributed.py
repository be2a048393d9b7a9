"""Several processes that share each batch, through ``torch.distributed``.

``torchrun`` starts them and tells each its place in the environment. All run the same program on the same
settings. Each batch is cut into contiguous rows, one part a process; gradients, losses and statistics are
summed, so that every process holds the same weights, scores and masks after every step.
"""

import atexit
import hashlib
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from robustcompress.errors import LostProcessError, TrainingError

T = TypeVar("T")


class Workers:
    """The processes of a run, as one of them sees it.

    Attributes:
        rank: Of this process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return which rows of a batch of ``count`` are this process's; the last process has some of any."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of the first process."""

    def from_main(self, value: T) -> T:
        """Return what the first process passed; ``value`` of others is ignored."""
        return value

    def any(self, flag: bool) -> bool:
        """Return whether any process passed true."""
        return flag

    def total(self, count: int) -> int:
        """Return the sum of what all processes passed."""
        return count

    def same(self, content: bytes) -> bool:
        """Return whether every process passed the same."""
        return True

    def check_same(self, tensors: Iterable[Tensor], what: str) -> None:
        """Check that every process holds the same bits.

        Raises:
            TrainingError: If one does not; ``what`` names the tensors.
        """


SOLO = Workers()
"""This process alone."""


class Group(Workers):
    """The processes of torch's default group.

    Args:
        device: Where tensors of this process are.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._device = device

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        # One message for each type: many small ones cost their latency each.
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            chosen = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in chosen])
            with _named_faults():
                dist.all_reduce(flat)
            _spread(flat, chosen)

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            chosen = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in chosen])
            with _named_faults():
                dist.broadcast(flat, src=0)
            _spread(flat, chosen)

    def from_main(self, value: T) -> T:
        box: list[Any] = [value if self.is_main else None]
        with _named_faults():
            dist.broadcast_object_list(box, src=0, device=self._device)
        return cast(T, box[0])

    def any(self, flag: bool) -> bool:
        return bool(self.total(int(flag)))

    def total(self, count: int) -> int:
        found = torch.tensor([count], device=self._device)
        with _named_faults():
            dist.all_reduce(found)
        return int(found.item())

    def same(self, content: bytes) -> bool:
        digest = hashlib.sha256(content).digest()
        return not self.any(self.from_main(digest) != digest)

    def check_same(self, tensors: Iterable[Tensor], what: str) -> None:
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        if not self.same(digest.digest()):
            raise TrainingError(
                f"the processes of this run no longer hold the same {what}: their machines, or versions of "
                "torch, compute differently. Train on equal machines."
            )


def launched() -> bool:
    """Return whether ``torchrun`` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def own_gpu(device: torch.device) -> torch.device:
    """Return this process's own GPU of its machine where ``device`` is any GPU and there are several."""
    index = cast("int | None", device.index)
    if device.type == "cuda" and index is None and launched():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def join_workers(device: torch.device, *, timeout_seconds: float = 1800) -> Workers:
    """Return the processes of this run, joined by NCCL between GPUs and by gloo between CPUs.

    A process that belongs to a group already stays in it; one that ``torchrun`` started joins the others
    until it ends; one that was started alone is :data:`SOLO`.

    Args:
        device: Where this process trains.
        timeout_seconds: How long it waits for the others before it gives up; a group that it belongs to
            already keeps its own.

    Raises:
        LostProcessError: If the others cannot be reached.
    """
    joined = dist.is_available() and dist.is_initialized()
    if not joined and not launched():
        return SOLO
    if not joined:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _named_faults():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_seconds)
            )
        atexit.register(dist.destroy_process_group)
    return Group(device) if dist.get_world_size() > 1 else SOLO


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    start = 0
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()


@contextmanager
def _named_faults() -> Generator[None]:
    try:
        yield
    except RuntimeError as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise LostProcessError(
            "another process of this run ended or stopped answering, so this one ends too. Look for the "
            f"first error above, then start all again with --resume. ({first})"
        ) from error
