"""What two processes must not do to each other: one launch, many findings."""

import json
from typing import Any

import pytest
import torch

from tests.training.test_distributed import torchrun

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo here")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of two processes found."""
    folder = tmp_path_factory.mktemp("edges")
    done = torchrun("-m", "tests.training.distributed_edges", str(folder))
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("rank", [0, 1])
def test_buffers_that_no_step_changes_keep_their_bits(found: list[dict[str, Any]], rank: int) -> None:
    kept = found[rank]["constants"]
    assert kept["floor"] == [float("-inf")] * 3
    assert torch.equal(torch.tensor(kept["scale"]), torch.tensor([0.4914, 0.2435, 0.2616]))


@pytest.mark.parametrize("rank", [0, 1])
def test_no_process_stops_before_the_state_is_on_the_disk(found: list[dict[str, Any]], rank: int) -> None:
    assert found[rank]["saved"]


def test_a_loader_of_random_order_gives_all_processes_the_same(found: list[dict[str, Any]]) -> None:
    # Two epochs of three batches; what is read after them only tells the data from others.
    first, second = (finding["order"] for finding in found)
    assert first[:6] == second[:6]
    assert first[:3] != first[3:6]


@pytest.mark.parametrize("rank", [0, 1])
def test_loaders_that_give_other_batches_are_found_out(found: list[dict[str, Any]], rank: int) -> None:
    assert "batch 1 of list is not the same in every process" in found[rank]["other batches"]
    assert "batch 2 of list is not the same in every process" in found[rank]["fewer batches"]


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_on_other_images_are_refused(found: list[dict[str, Any]], rank: int) -> None:
    assert "all processes of a run need the same training images" in found[rank]["other images"]


def test_the_first_process_alone_evaluates(found: list[dict[str, Any]]) -> None:
    first, second = (finding["evaluate"] for finding in found)
    assert first == ""
    assert "evaluate is the first process's work alone; this is process 1 of 2" in second
