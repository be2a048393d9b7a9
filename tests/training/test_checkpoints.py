"""States in the background: what stays, what is taken up, what goes wrong, and ``kill -9`` at any moment."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustcompress.errors import StorageError, TrainingError
from robustcompress.events import Event, Events, Notice, StageStarted
from robustcompress.storage.state import load_state
from robustcompress.training import checkpoints
from robustcompress.training.checkpoints import Checkpoints
from tests.training.test_loop import assert_same, network, tensors, train

SELDOM = 1e9


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def state_of(step: int) -> dict[str, Tensor]:
    return {"w": torch.full((50, 50), float(step))}


def refuse(message: str) -> None:
    pytest.fail(f"unexpected warning: {message}")


class SlowDisk:
    """Stands for ``save_state``; each save waits until it is let through."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.through = threading.Semaphore(0)
        self.values: list[Mapping[str, object]] = []
        self.sums: list[float] = []

    def __call__(self, path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> None:
        self.begun.release()
        assert self.through.acquire(timeout=60)
        self.values.append(values)
        self.sums.append(sum(float(tensor.sum()) for tensor in tensors.values()))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SlowDisk:
    disk = SlowDisk()
    monkeypatch.setattr(checkpoints, "save_state", disk)
    return disk


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_last_n_states_are_kept(tmp_path: Path, keep: int) -> None:
    folder = tmp_path / "stage"
    with Checkpoints(folder, every_seconds=SELDOM, keep=keep) as states:
        assert states.newest(refuse) is None
        for step in (3, 4, 10, 200):
            states.save(step, state_of(step), {"step": step})
        states.flush()
        assert names(folder) == [f"state-{step:09d}.safetensors" for step in (3, 4, 10, 200)[-keep:]]
        found = states.newest(refuse)
    assert found is not None
    assert torch.equal(found[0]["w"], state_of(200)["w"])
    assert found[1] == {"step": 200}


def test_an_old_state_goes_only_when_the_new_one_is_on_the_disk(tmp_path: Path, slow: SlowDisk) -> None:
    (tmp_path / "state-000000001.safetensors").touch()
    with Checkpoints(tmp_path, every_seconds=SELDOM, keep=1) as states:
        states.save(2, state_of(2), {})
        assert slow.begun.acquire(timeout=60)
        assert names(tmp_path) == ["state-000000001.safetensors"]
        (tmp_path / "state-000000002.safetensors").touch()
        slow.through.release()
        states.flush()
        assert names(tmp_path) == ["state-000000002.safetensors"]


def test_a_state_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, every_seconds=SELDOM) as states:
        states.save(5, state_of(1), {"epoch": 0})
        states.save(5, state_of(2), {"epoch": 1})
    assert names(tmp_path) == ["state-000000005.safetensors"]
    assert load_state(tmp_path / "state-000000005.safetensors")[1] == {"epoch": 1}


def test_other_files_stay_and_leftovers_of_killed_writers_go(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".state-000000007.safetensors.tmp-01234567").touch()
    with Checkpoints(tmp_path, every_seconds=SELDOM, keep=1) as states:
        states.save(8, state_of(8), {})
    assert names(tmp_path) == ["notes.txt", "state-000000008.safetensors"]


@pytest.mark.parametrize("damage", ["cut short", "one bit", "empty"])
def test_a_damaged_newest_state_falls_back_to_the_one_before_and_says_so(tmp_path: Path, damage: str) -> None:
    with Checkpoints(tmp_path, every_seconds=SELDOM, keep=3) as states:
        for step in (1, 2, 3):
            states.save(step, state_of(step), {"step": step})
    newest = tmp_path / "state-000000003.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1 if damage == "one bit" else 0
    newest.write_bytes(content[: {"cut short": len(content) // 2, "one bit": None, "empty": 0}[damage]])
    said: list[str] = []
    with Checkpoints(tmp_path, every_seconds=SELDOM, keep=3) as states:
        found = states.newest(said.append)
        assert found is not None
        assert found[1] == {"step": 2}
        assert len(said) == 1
        assert str(newest) in said[0]
        assert "goes on from the state before it, state-000000002.safetensors" in said[0]
        assert newest.exists()  # until there is something better
        states.save(3, state_of(33), {"step": 33})
        states.flush()
        found = states.newest(refuse)
        assert found is not None
        assert found[1] == {"step": 33}


def test_a_damaged_state_that_was_passed_over_goes_when_a_new_one_is_saved(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, every_seconds=SELDOM, keep=2) as states:
        states.save(10, state_of(10), {"step": 10})
    (tmp_path / "state-000000020.safetensors").write_bytes(b"torn")
    said: list[str] = []
    with Checkpoints(tmp_path, every_seconds=SELDOM, keep=2) as states:
        assert states.newest(said.append) is not None
        states.save(15, state_of(15), {"step": 15})
    assert len(said) == 1
    assert names(tmp_path) == ["state-000000010.safetensors", "state-000000015.safetensors"]


def test_no_intact_state_stops_the_run(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / f"state-{step:09d}.safetensors").write_bytes(b"torn")
    with (
        Checkpoints(tmp_path, every_seconds=SELDOM) as states,
        pytest.raises(StorageError, match=r"at least one intact training state of 2; .*state-000000002"),
    ):
        states.newest(refuse)


def test_a_state_is_due_by_steps_or_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("robustcompress.training.checkpoints.time.monotonic", lambda: clock[0])
    with Checkpoints(tmp_path, every_steps=10, every_seconds=60) as states:
        assert [step for step in range(1, 12) if states.due(step)] == [10, 11]
        states.save(11, {}, {})
        states.flush()
        assert not states.due(20)
        assert states.due(21)
        clock[0] = 61.0
        assert states.due(12)
    with Checkpoints(tmp_path, every_seconds=60) as states:
        assert not states.due(1000)
    with Checkpoints(tmp_path, every_steps=10, every_seconds=60) as states:
        states.newest(refuse)
        assert not states.due(20)  # counts from the state that was taken up
        assert states.due(21)


def test_a_save_copies_and_returns_before_the_disk_is_done(tmp_path: Path, slow: SlowDisk) -> None:
    weights, best = torch.ones(1000, requires_grad=True), torch.ones(10)
    with Checkpoints(tmp_path, every_seconds=0.0, every_steps=1) as states:
        states.save(1, {"w": weights}, {"step": 1}, constant={"best": best})
        assert slow.begun.acquire(timeout=60)
        with torch.no_grad():
            weights.fill_(7.0)  # as the next optimizer step does
        assert not states.due(2)  # put off: the disk is busy
        slow.through.release()
        states.flush()
        assert states.due(3)
        states.save(3, {"w": weights}, {"step": 3}, constant={"best": best})
        slow.through.release()
    assert [values["step"] for values in slow.values] == [1, 3]
    assert slow.sums == [1010.0, 7010.0]


def test_a_save_that_is_asked_for_waits_for_the_one_before(tmp_path: Path, slow: SlowDisk) -> None:
    with Checkpoints(tmp_path, every_seconds=SELDOM) as states:
        states.save(1, state_of(1), {"step": 1})
        second = threading.Thread(target=states.save, args=(2, state_of(2), {"step": 2}))
        second.start()
        assert slow.begun.acquire(timeout=60)
        assert not slow.begun.acquire(timeout=0.05)
        slow.through.release(2)
        second.join(60)
    assert [values["step"] for values in slow.values] == [1, 2]
    assert slow.sums == [2500.0, 5000.0]


def test_buffers_follow_tensors_that_change_their_shape_or_dtype(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, every_seconds=SELDOM) as states:
        for step, tensor in enumerate((torch.rand(3), torch.rand(4), torch.rand(4).double()), start=1):
            states.save(step, {"w": tensor}, {})
            found = states.newest(refuse)
            assert found is not None
            assert torch.equal(found[0]["w"], tensor)
            assert found[0]["w"].dtype == tensor.dtype


def full_disk(*_: object) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("notice", ["due", "save", "flush", "leave"])
def test_a_full_disk_is_told_to_the_training_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notice: str
) -> None:
    monkeypatch.setattr(os, "write", full_disk)
    states = Checkpoints(tmp_path, every_seconds=SELDOM)
    states.save(1, state_of(1), {})
    done = states._writing
    assert done is not None
    done.exception(timeout=60)
    calls: dict[str, Callable[[], object]] = {
        "due": lambda: states.due(2),
        "save": lambda: states.save(2, state_of(2), {}),
        "flush": states.flush,
        "leave": lambda: states.__exit__(None, None, None),
    }
    with pytest.raises(
        StorageError, match=r"cannot write .*state-000000001\.safetensors: No space left.*Free"
    ):
        calls[notice]()
    assert names(tmp_path) == []
    states.__exit__(None, None, None)  # told once


def test_an_error_of_the_training_is_not_hidden_by_one_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        with Checkpoints(tmp_path, every_seconds=SELDOM) as states:
            states.save(1, state_of(1), {})
            raise TrainingError("the loss is nan")

    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(TrainingError, match="the loss is nan") as caught:
        fail()
    assert "could not be saved either: cannot write" in caught.value.__notes__[0]


def test_what_the_check_refuses_is_not_written(tmp_path: Path) -> None:
    def check(step: int, tensors: Mapping[str, Tensor]) -> None:
        raise TrainingError(f"{sorted(tensors)} at {step}")

    states = Checkpoints(tmp_path, every_seconds=SELDOM, check=check)
    states.save(4, state_of(4), {}, constant={"best": torch.ones(1)})
    with pytest.raises(TrainingError, match=r"\['best', 'w'\] at 4"), states:
        pass
    assert names(tmp_path) == []


# ---- in the loop -------------------------------------------------------------------------------------------


def test_a_full_disk_stops_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(StorageError, match=r"No space left on device\. Free some space"):
        train(network(), checkpoint=tmp_path, checkpoint_steps=1)


def test_a_run_that_lost_its_newest_state_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = network()
    train(whole)

    def die(event: Event) -> None:
        if getattr(event, "step", 0) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(), checkpoint=tmp_path, checkpoint_steps=1, keep_checkpoints=9, events=Events([die]))
    newest = names(tmp_path)[-1]
    (tmp_path / newest).write_bytes((tmp_path / newest).read_bytes()[:-5])
    said: list[Event] = []
    resumed = network()
    train(resumed, checkpoint=tmp_path, events=Events([said.append]))
    notice = next(event for event in said if isinstance(event, Notice))
    assert notice.level == "warning"
    assert newest in notice.message
    started = next(event for event in said if isinstance(event, StageStarted))
    assert f"state-{started.resumed_at:09d}" < newest
    assert_same(tensors(resumed), tensors(whole))


def test_states_lie_no_more_steps_apart_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    real = Checkpoints.save

    def save(self: Checkpoints, step: int, *args: Any, **keywords: Any) -> None:
        saved.append(step)
        real(self, step, *args, **keywords)
        self.flush()  # a disk that is never too slow

    monkeypatch.setattr(Checkpoints, "save", save)
    train(network(), checkpoint=tmp_path, checkpoint_steps=2)
    assert saved == [2, 3, 5, 6, 8, 9]  # three steps an epoch; each epoch's end is saved too


# ---- kill -9 -----------------------------------------------------------------------------------------------

# Trains once without a break, then in a child for each line of input, killed so many seconds after it took
# up its state; -1 spares it.
_TRAINER = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from robustcompress.events import Events, StageStarted
from robustcompress.storage.state import save_state
from tests.training.test_loop import masking_of, network, tensors, train
here = Path(sys.argv[2])

def run(result, said, **checkpoint):
    model = network()
    masking = masking_of(model)
    settings = {"epochs": int(sys.argv[3]), "optimizer": "adam"}
    train(model, overrides=masking, settings=settings, events=Events([said]), **checkpoint)
    save_state(result, tensors(model, masking), {})

run(here / "whole", lambda event: None)
began = time.monotonic()
run(here / "again", lambda event: None)
print(time.monotonic() - began, flush=True)
for line in sys.stdin:
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        def said(event):
            if isinstance(event, StageStarted):
                os.write(sender, b"%d" % event.resumed_at)
        run(here / "resumed", said, checkpoint=here / "states", checkpoint_steps=1, keep_checkpoints=2)
        os._exit(0)
    resumed_at = os.read(receiver, 20).decode()
    os.close(receiver), os.close(sender)
    if float(line) >= 0:
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), resumed_at, flush=True)
"""


@pytest.mark.parametrize("kills", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_changes_no_bit_of_the_result(tmp_path: Path, kills: int) -> None:
    moments = random.Random(kills)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", _TRAINER, root, str(tmp_path), str(kills + 1)]
    codes: list[int] = []
    starts: list[int] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        seconds = float(trainer.stdout.readline())
        delays = [moments.uniform(0, 2 * seconds / kills) for _ in range(kills)]
        for delay in [*delays, -1.0]:
            trainer.stdin.write(f"{delay}\n")
            trainer.stdin.flush()
            code, start = trainer.stdout.readline().split()
            codes.append(int(code))
            starts.append(int(start))
        trainer.stdin.close()
    assert codes.count(-signal.SIGKILL) >= kills // 2
    assert codes[-1] == 0
    assert starts == sorted(starts)
    assert len(set(starts)) > kills // 4
    assert_same(load_state(tmp_path / "resumed")[0], load_state(tmp_path / "whole")[0])
    assert len(names(tmp_path / "states")) <= 2
