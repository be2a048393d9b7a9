"""One thread for everything: the suite's networks are too small for more, here and in processes it starts."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)
