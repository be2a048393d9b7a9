"""The same suite every time: one thread, one seed at the start of each test, the same hypothesis examples.

One thread for everything, here and in processes that tests start: the suite's networks are too small
for more.
"""

import os
import random

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that draws without a seed of its own draws the same whether it runs alone or among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
