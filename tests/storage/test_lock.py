import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robustcompress.errors import RunLockedError, StorageError
from robustcompress.storage import lock
from robustcompress.storage.lock import RunLock, held, try_lock

_HOLDER = """
import os, sys, time
from pathlib import Path
from robustcompress.storage.lock import RunLock
with RunLock(Path(sys.argv[1])):
    child = os.fork() if "fork" in sys.argv else None
    if not child:
        print(os.getpid(), flush=True)  # a child says so itself: by then it has forgotten the lock
    if child == 0:
        time.sleep(60)
        os._exit(0)
    sys.stdin.read()
"""


_FORKS_WHILE_HOLDING = """
import os, sys, time
from pathlib import Path
from robustcompress.storage.lock import held
with held(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
print(child, flush=True)
"""


@contextmanager
def holder(folder: Path, *arguments: str) -> Generator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock until its standard input ends, and the number it prints."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def test_the_lock_makes_the_folder_and_names_its_holder(tmp_path: Path) -> None:
    with RunLock(tmp_path / "a" / "run"):
        holder = json.loads((tmp_path / "a" / "run" / "run.lock").read_text())
        assert holder["pid"] == os.getpid()


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, pid):
        with pytest.raises(
            RunLockedError, match=f"is in use by process {pid} on .*choose another run folder"
        ):
            RunLock(tmp_path).__enter__()
        process.communicate("", timeout=60)
        with RunLock(tmp_path):
            pass


def test_a_second_lock_in_the_same_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with (
        RunLock(tmp_path),
        pytest.raises(RunLockedError, match=f"in use by process {os.getpid()}"),
        RunLock(tmp_path),
    ):
        pass
    with RunLock(tmp_path):
        pass


def test_an_error_in_the_body_ends_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    with RunLock(tmp_path):
        pass


def test_kill_9_ends_the_lock_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        with RunLock(tmp_path):
            pass


def test_a_child_that_outlives_its_killed_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as (process, child):
        with pytest.raises(RunLockedError, match="in use by process"):
            RunLock(tmp_path).__enter__()
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        try:
            with RunLock(tmp_path):
                os.kill(child, 0)  # it is alive
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": "x", "host": 1}', "\xff"])
def test_a_lock_file_without_a_name_still_locks(tmp_path: Path, text: str) -> None:
    with RunLock(tmp_path):
        (tmp_path / "run.lock").write_text(text)
        with pytest.raises(RunLockedError, match="in use by another process"):
            RunLock(tmp_path).__enter__()


def test_a_folder_that_cannot_be_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot lock .*file: File exists"):
        RunLock(tmp_path / "file").__enter__()
    (tmp_path / "run" / "run.lock").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"cannot lock .*run: Is a directory"):
        RunLock(tmp_path / "run").__enter__()


def test_a_file_system_without_locks_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, *, wait: bool) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock, "_lock", refuse)
    with pytest.raises(StorageError, match=r"cannot lock .*Operation not supported.*on a local disk"):
        RunLock(tmp_path).__enter__()
    with held(tmp_path):
        pass


def test_what_is_held_cannot_be_locked(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with held(tmp_path):
            assert not try_lock(descriptor)
        assert try_lock(descriptor)
    finally:
        os.close(descriptor)


def test_a_process_forked_meanwhile_does_not_go_on_holding(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _FORKS_WHILE_HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        descriptor = os.open(tmp_path, os.O_RDONLY)
        try:
            assert try_lock(descriptor)
        finally:
            os.close(descriptor)
            os.kill(child, signal.SIGKILL)


def test_holding_waits_for_the_last_holder(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from robustcompress.storage.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(0.5)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        begin = time.monotonic()
        with held(tmp_path):
            waited = time.monotonic() - begin
    assert waited > 0.2
