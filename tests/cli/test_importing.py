import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from robustcompress.cli.main import app
from robustcompress.errors import ConfigError
from tests.pipeline.test_importing import scored_bars


def arguments(folder: Path) -> list[str]:
    settings = scored_bars(folder / "c.pt")
    network = str(settings.pop("kind"))
    given = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    return ["import", str(folder / "c.pt"), "--network", network, *given, "--out", str(folder / "in")]


def test_a_checkpoint_comes_in_and_a_state_dict_goes_out(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*arguments(tmp_path), "--k", "0.5"])
    assert done.exit_code == 0, done.output
    assert "by the names of own" in done.output
    assert "masks of 4 layers remove 50" in done.output
    out = tmp_path / "out.pt"
    written = CliRunner().invoke(app, ["state-dict", str(tmp_path / "in"), "--out", str(out)])
    assert f"{out.stat().st_size:,} bytes" in written.output
    assert int((torch.load(out, weights_only=True)["classifier.weight"] == 0).sum()) == 12


def test_json_is_one_value(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, [*arguments(tmp_path), "--k", "0.5", "--json", "--drop", "classifier.popup*"]
    )
    found = json.loads(done.output)
    assert (found["without_scores"], found["dropped"]) == (["classifier"], ["classifier.popup_scores"])
    command = ["state-dict", str(tmp_path / "in"), "--out", str(tmp_path / "o.pt"), "--json"]
    assert json.loads(CliRunner().invoke(app, command).output)["naming"] == "own"


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    command = [*arguments(tmp_path), "--k", "0.5", "--drop", "classifier.popup*"]
    output = CliRunner().invoke(app, command).output
    assert "dense, for want of scores (name them in ignore): classifier" in output
    assert "left out 1 tensors: classifier.popup_scores" in output


def test_nonsense_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*arguments(tmp_path), "--set", "hidden"])
    assert isinstance(done.exception, ConfigError)
    with pytest.raises(ConfigError, match="--set takes name=value; got 'hidden'"):
        raise done.exception
    command = ["import", str(tmp_path / "c.pt"), "--network", "a.b:c", "--out", str(tmp_path / "in")]
    refused = CliRunner().invoke(app, command)
    assert "runs that module's code" in str(refused.exception)
