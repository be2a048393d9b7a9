"""``kill -9`` in the middle of a save loses nothing."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustcompress.storage.artifact import Artifact, load_artifact, save_artifact
from robustcompress.storage.state import load_state, save_state

# Imports torch once; a line of input starts a child that saves in a loop, killed after so many seconds.
_SAVER = """
import os, signal, sys, time
from pathlib import Path
import torch
from robustcompress.storage.artifact import Artifact, save_artifact
from robustcompress.storage.state import save_state
artifact, state = Path(sys.argv[1]), Path(sys.argv[2])
for line in sys.stdin:
    begun, tell = os.pipe()
    child = os.fork()
    if child == 0:
        for version in range(1, 1_000_000):
            tensors = {"w": torch.full((200, 200), float(version)), "b": torch.full((7,), version)}
            save_artifact(Artifact(stage="x", tensors=tensors, seed=version, extra_tensors=tensors), artifact)
            save_state(state, tensors, {"version": version})
            os.write(tell, b"x")
    os.read(begun, 1)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(begun), os.close(tell)
    print("killed", flush=True)
"""


@pytest.fixture
def saver(tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _SAVER, str(tmp_path / "artifact"), str(tmp_path / "run" / "state")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def check(version: int, tensors: dict[str, torch.Tensor]) -> None:
    assert torch.equal(tensors["w"], torch.full((200, 200), float(version)))
    assert torch.equal(tensors["b"], torch.full((7,), version))


def test_what_is_on_disk_after_kill_9_is_one_complete_version(
    tmp_path: Path, saver: subprocess.Popen[str]
) -> None:
    moments = random.Random(0)
    seen: set[int] = set()
    with saver:
        assert saver.stdin is not None
        assert saver.stdout is not None
        for _ in range(10):
            saver.stdin.write(f"{moments.uniform(0, 0.06)}\n")
            saver.stdin.flush()
            assert saver.stdout.readline() == "killed\n"
            artifact = load_artifact(tmp_path / "artifact")
            check(artifact.seed, dict(artifact.tensors))
            check(artifact.seed, dict(artifact.extra_tensors))
            tensors, values = load_state(tmp_path / "run" / "state")
            check(int(str(values["version"])), tensors)
            seen.add(artifact.seed)
        saver.stdin.close()
    assert len(seen) > 1
    save_artifact(Artifact(stage="x", tensors={}, seed=0), tmp_path / "artifact")
    save_state(tmp_path / "run" / "state", {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["state"]
