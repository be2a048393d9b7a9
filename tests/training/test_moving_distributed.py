"""Masks that move and gradients of gates: two processes against one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustcompress.training.distributed import SOLO, Workers
from tests.training import moving_worker as worker

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo here")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what two processes found."""
    folder = tmp_path_factory.mktemp("pair")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.moving_worker", str(folder)],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("what", [worker.move, worker.measure])
def test_two_processes_agree_and_do_what_one_does(
    pair: Path, what: Callable[[Workers], dict[str, Tensor]]
) -> None:
    first, second = (torch.load(pair / f"{what.__name__}-{rank}.pt") for rank in (0, 1))
    alone = what(SOLO)
    assert first.keys() == second.keys() == alone.keys()
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-8, msg=name)
