"""Every random number comes from a seed derived from the run's seed and from where it is used.

Deriving instead of drawing on means that no generator's state has to be saved: a resumed run derives the
same seeds again.
"""

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *place: str | int) -> int:
    """Return a 63-bit seed that depends on ``seed`` and on each part of ``place``."""
    text = "/".join([str(seed), *(str(part) for part in place)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(device: torch.device | str, seed: int, *place: str | int) -> torch.Generator:
    """Return a generator on ``device`` seeded for ``place``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *place))


def seed_globals(seed: int) -> None:
    """Seed the generators of torch, NumPy and Python, which users' own code may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def borrowed_generators() -> Generator[None, None, None]:
    """Let the body seed the global generators as it likes, then put them back as they were."""
    # A new process's CUDA context is not worth starting only to save its generator.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
