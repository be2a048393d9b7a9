"""Two processes, joined by gloo, against one."""

import copy
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from robustcompress.errors import ConfigError, TrainingError
from robustcompress.pipeline.context import resolve_device
from robustcompress.seeding import derive_seed, generator_for
from robustcompress.storage.artifact import load_artifact
from robustcompress.training.distributed import SOLO, Group, Workers, join_workers, own_gpu
from robustcompress.training.objectives import Moment, Objective, StepView
from tests.training import distributed_worker as worker

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo here")

ROOT = Path(__file__).parents[2]
Found = dict[str, Tensor]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *arguments],
        check=False,
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what two processes found."""
    folder = tmp_path_factory.mktemp("pair")
    done = torchrun("-m", "tests.training.distributed_worker", str(folder), "train")
    assert done.returncode == 0, done.stderr
    return folder


def load(folder: Path, name: str, rank: int) -> Found:
    found: Found = torch.load(folder / f"{name}-{rank}.pt")
    return found


NAMES = [f"norm{norm}-prune{prune}" for norm in (0, 1) for prune in (0, 1)]


@pytest.mark.parametrize("name", [*NAMES, "techniques-prune0", "techniques-prune1", "resumed"])
def test_both_processes_end_with_the_same_bits(pair: Path, name: str) -> None:
    first, second = load(pair, name, 0), load(pair, name, 1)
    assert set(first) == set(second)
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert any(key.startswith("mask.") for key in first)


@pytest.mark.parametrize("prune", [False, True], ids=["finetune", "prune"])
def test_without_batch_norm_two_processes_do_what_one_does(pair: Path, prune: bool) -> None:
    alone, together = worker.train(SOLO, norm=False, prune=prune), load(pair, f"norm0-prune{prune:d}", 0)
    for key, tensor in alone.items():
        torch.testing.assert_close(together[key], tensor, rtol=1e-5, atol=1e-8, msg=key)


@pytest.mark.parametrize("prune", [False, True], ids=["finetune", "prune"])
def test_carried_and_weight_perturbations_and_averages_do_not_depend_on_the_processes(
    pair: Path, prune: bool
) -> None:
    alone = worker.train(SOLO, norm=False, prune=prune, **worker.TECHNIQUES)
    together = load(pair, f"techniques-prune{prune:d}", 0)
    for key, tensor in alone.items():
        torch.testing.assert_close(together[key], tensor, rtol=1e-5, atol=1e-8, msg=key)


def test_a_run_that_one_process_stopped_resumes_bit_for_bit(pair: Path) -> None:
    resumed, unbroken = load(pair, "resumed", 0), load(pair, "norm1-prune1", 0)
    for key, tensor in unbroken.items():
        assert torch.equal(resumed[key], tensor), key


def test_with_batch_norm_two_processes_do_what_one_does_that_normalises_each_shard(pair: Path) -> None:
    model = worker.network(norm=True)
    initial, together = copy.deepcopy(model), load(pair, "norm1-prune0", 0)
    masks = {k.removeprefix("mask.") + ".weight": v for k, v in together.items() if k.startswith("mask.")}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    objective, step = Objective.find({"kind": "trades", "steps": 2}), 0
    source = worker.source()
    steps = source.steps() * worker.EPOCHS
    best: tuple[float, float] = (-1.0, -1.0)
    kept: Found = {}
    for epoch in range(worker.EPOCHS):
        for images, labels in source.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item())
            optimizer.zero_grad()
            statistics: list[tuple[float, dict[str, Tensor]]] = []
            for rank in range(2):
                rows = slice(len(images) * rank // 2, len(images) * (rank + 1) // 2)
                if rows.start == rows.stop:
                    statistics.append((0.0, dict(model.named_buffers())))
                    continue
                share = (rows.stop - rows.start) / len(images)
                shard = masked_copy(model, masks)
                attacked = copy.deepcopy(shard).eval()
                view = StepView(
                    learning=shard.train(),
                    frozen=attacked,
                    model=shard,
                    tensors={},
                    threat=worker.THREAT,
                    generator=generator_for("cpu", derive_seed(0, "prune"), "step", step),
                    moment=Moment(epoch, worker.EPOCHS, step, steps),
                    rows=rows,
                    batch=len(images),
                )
                (share * objective.loss(view, images[rows], labels[rows])).backward()
                statistics.append((share, dict(shard.named_buffers())))
                for name, parameter in model.named_parameters():
                    found = shard.get_parameter(name).grad
                    assert found is not None
                    found = found * masks[name] if name in masks else found
                    parameter.grad = found if parameter.grad is None else parameter.grad + found
            optimizer.step()
            for name, buffer in model.named_buffers():
                if buffer.is_floating_point():
                    buffer.copy_(torch.stack([share * of[name] for share, of in statistics]).sum(0))
            step += 1
        record = together["history"][epoch]
        key = (float(record[2]), float(record[1]))
        if key > best:
            best, kept = key, {k: v.detach().clone() for k, v in model.state_dict().items()}
    assert not torch.equal(kept["layers.0.weight"], initial.get_parameter("layers.0.weight"))
    for name, tensor in kept.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(together[name], tensor, rtol=1e-5, atol=1e-8, msg=name)


def masked_copy(model: torch.nn.Module, masks: Found) -> torch.nn.Module:
    shard = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            shard.get_parameter(name).mul_(mask)
    shard.zero_grad()
    return shard


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_a_process_that_dies_ends_the_other_soon_with_a_reason(tmp_path: Path) -> None:
    # Without torchrun, which would end the other one itself.
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "tests.training.distributed_worker", str(tmp_path), "die"]
    began = time.monotonic()
    processes = [
        subprocess.Popen(
            command,
            env={**environment(), **shared, "RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    message, _ = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "LostProcessError: another process of this run ended or stopped answering" in message
    assert time.monotonic() - began < 100
    assert not list(tmp_path.rglob("*.tmp*"))


def test_the_command_line_runs_in_two_processes_and_one_of_them_speaks(tmp_path: Path) -> None:
    recipe = {
        "model": {"kind": "small_cnn"},
        "data": {"kind": "fashion_mnist_mini", "train_size": 100, "test_size": 20},
        "threat": {"eps": 0.1},
        "objective": {"kind": "trades", "steps": 1},
        "pretrain": {"epochs": 1, "batch_size": 32},
        "prune": {"epochs": 1, "batch_size": 32},
        "finetune": {"epochs": 1, "batch_size": 32},
        "validation": {"attack": {"kind": "pgd", "steps": 1}},
        "stages": ["pretrain", "prune", "finetune", "compact"],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "run"
    done = torchrun("-m", "robustcompress", "run", str(tmp_path / "recipe.yaml"), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("artifact ") == 1
    assert done.stderr.count("prune  ") >= 1
    masked = load_artifact(out / "stages" / "finetune").sparsity
    assert sum(counts["kept"] for counts in masked.values()) == 20_699
    left = load_artifact(out / "artifact").sparsity
    assert sum(counts["kept"] for counts in left.values()) <= 20_699  # weights of dead channels go too
    # The same command again, to take the finished run up.
    again = torchrun(
        *("-m", "robustcompress", "run", str(tmp_path / "recipe.yaml"), "--out", str(out), "--resume")
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_rows_of_all_processes_are_the_batch_and_the_last_has_some(count: int, size: int) -> None:
    found: list[int] = []
    for rank in range(size):
        workers = Workers()
        workers.rank, workers.size = rank, size
        found += range(count)[workers.rows(count)]
    assert found == list(range(count))
    workers = Workers()
    workers.rank, workers.size = size - 1, size
    assert count == 0 or len(range(count)[workers.rows(count)]) > 0


def test_a_process_alone_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_workers(torch.device("cpu")) is SOLO
    tensor = torch.ones(2)
    SOLO.sum_([tensor])
    SOLO.broadcast_([tensor])
    SOLO.check_same([tensor], "weights")
    assert torch.equal(tensor, torch.ones(2))
    assert SOLO.from_main(3) == 3
    assert SOLO.any(True)
    assert SOLO.total(4) == 4


def test_each_process_of_a_machine_gets_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    any_gpu, second = torch.device("cuda"), torch.device("cuda:1")
    assert own_gpu(any_gpu) == any_gpu
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_gpu(any_gpu) == second
    assert own_gpu(torch.device("cuda:0")) == torch.device("cuda:0")
    assert own_gpu(torch.device("cpu")) == torch.device("cpu")


def test_one_gpu_named_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="'cuda:1' would be that of all processes"):
        resolve_device("cuda:1")


def test_processes_that_hold_different_bits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Group):
        def __init__(self) -> None:
            self.rank, self.size = 1, 2

        def from_main(self, value: Any) -> Any:
            return b"another digest"

        def total(self, count: int) -> int:
            return count

    with pytest.raises(TrainingError, match="no longer hold the same masks"):
        Other().check_same([torch.ones(3, dtype=torch.bool)], "masks")
