import json
import os
import subprocess
import sys
from pathlib import Path

MODULE = """
import torch
from torch import nn


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 16, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 49, 20), nn.Linear(20, 10)
        )


class Stubborn(Plain):
    def forward(self, images):
        if images.dtype == torch.float64:
            raise TypeError("float32 please")
        return super().forward(images)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Stubborn()

    def forward(self, images):
        return self.inner(images)
"""


def inspect(
    folder: Path, factory: str, *arguments: str, columns: int = 80, check: int = 0
) -> "subprocess.CompletedProcess[str]":
    (folder / "mine.py").write_text(MODULE)
    command = [sys.executable, "-m", "robustcompress.cli.main", "inspect", "--model", f"mine:{factory}"]
    done = subprocess.run(
        [*command, "--data", "fashion-mnist-mini", "--allow-import", "--pattern", "channel", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": str(columns)},
    )
    assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_table_of_a_users_network_fits_the_terminal(tmp_path: Path) -> None:
    said = inspect(tmp_path, "Plain", "--sparsity", "0.5", "--groups").stdout
    assert max(map(len, said.splitlines())) <= 80
    assert "16→8" in said
    assert "taken in by" in said
    assert "Expected speed-up" in said


def test_json_and_constraints(tmp_path: Path) -> None:
    found = json.loads(inspect(tmp_path, "Plain", "--constraint", "macs=50%", "--json").stdout)
    assert found["macs_after"] <= found["macs"] / 2
    assert found["speed_up"] >= 2
    assert found["sites"][0]["consumers"] == ["3"]


def test_a_network_that_cannot_be_looked_through_gets_one_message_that_names_the_layer(
    tmp_path: Path,
) -> None:
    done = inspect(tmp_path, "Outer", "--json", check=4)
    message = json.loads(done.stdout)["error"]["message"]
    assert "TypeError: float32 please" in message
    assert "'inner' (Stubborn)" in message
    assert done.stderr.count("\n") == 1
