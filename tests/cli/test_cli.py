import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from robustcompress import Recipe
from robustcompress.cli.judging import parse_attack
from robustcompress.cli.main import app, run
from robustcompress.cli.options import Choices, free_folder
from robustcompress.errors import ConfigError

QUICK = [
    *("--set", "data={kind: fashion_mnist_mini, train_size: 500, test_size: 100}"),
    *("--set", "pretrain={epochs: 1, lr: 0.01, optimizer: adam, batch_size: 256}"),
    *("--set", "prune={epochs: 1, lr: 0.1, batch_size: 256}"),
    *("--set", "finetune={epochs: 1, lr: 0.01, optimizer: adam, batch_size: 256}"),
    *("--set", "objective={kind: trades, steps: 1}"),
    *("--set", "validation.attack={kind: pgd, steps: 1}"),
    *("--set", "validation.limit=100"),
    *("--set", "evaluation={limit: 60, curve: [], examples: 2, attacks: [{kind: pgd, steps: 2}]}"),
]


def start(*arguments: str, check: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a user does, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "robustcompress.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == check, done.stderr + done.stdout
    return done


def call(*arguments: str, check: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run the command line in this process, entry point and exit code included: seconds faster."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["robustcompress", *arguments])
        try:
            run()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    done = subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
    assert done.returncode == check, done.stderr + done.stdout
    return done


def test_a_pattern_that_says_its_own_sparsity_needs_no_other() -> None:
    assert Choices(pattern="n_m").to_recipe().sparsity == 0.5
    assert Choices(pattern="n_m", settings=["pattern.n=1", "pattern.m=8"]).to_recipe().sparsity == 0.875
    assert Choices(pattern="channel").to_recipe().sparsity == 0.9
    with pytest.raises(ConfigError, match=r"0\.3"):
        Choices(pattern="n_m", sparsity=0.3).to_recipe()
    with pytest.raises(ConfigError, match="unknown"):
        Choices(pattern="n_n").to_recipe()


def test_one_command_goes_from_training_to_an_attacked_file(tmp_path: Path) -> None:
    out = tmp_path / "not" / "there" / "yet"
    done = start("prune", "--out", str(out), "--sparsity", "0.8", "--json", *QUICK)
    found: dict[str, Any] = json.loads(done.stdout)  # one value on stdout, nothing else
    assert "pretrain" in done.stderr
    assert found["run_dir"] == str(out)
    assert Path(found["files"][0]["path"]).stat().st_size == found["files"][0]["size_bytes"]
    rows = [(row["subject"], row["attack"], row["access"]) for row in found["report"]["measurements"]]
    assert {("model.onnx", "PGD-2x1", "transfer"), ("model.onnx", "PGD-2x1", "white-box")} <= set(rows)
    assert {row["count"] for row in found["report"]["measurements"]} == {60}
    recipe = Recipe.read(out / "recipe.yaml")
    assert recipe.sparsity == 0.8
    shown = call("report", str(out))
    assert "model.onnx" in shown.stdout
    assert json.loads(call("report", str(out), "--json").stdout) == found["report"]
    again = call("evaluate", str(out), "--eps", "2/255", "--attack", "pgd:steps=3", "--limit", "40", "--json")
    measured = json.loads(again.stdout)["measurements"]
    assert {row["attack"] for row in measured} == {"clean", "PGD-3x1", "8-bit pixels", "worst case"}
    assert {row["eps"] for row in measured} == {None, 2 / 255}
    dense = tmp_path / "dense.onnx"
    written = json.loads(call("export", str(out), "--style", "dense", "--out", str(dense), "--json").stdout)
    assert dense.stat().st_size == written["size_bytes"] > found["files"][0]["size_bytes"]
    refused = call("prune", "--out", str(out), *QUICK, check=2)
    assert "holds a run already" in refused.stderr


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "robustcompress.cli.main", "pretrain", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    )
    events = out / "events.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (events.exists() and "StepDone" in events.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert list((out / "checkpoints" / "pretrain").glob("state-*.safetensors"))


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    done = call("prune", "--dry-run", "--json", "--out", str(tmp_path / "run"))
    plan = json.loads(done.stdout)
    assert plan["out"] == str(tmp_path / "run")
    assert plan["recipe"]["model"]["kind"] == "small_cnn"
    assert {row["name"] for row in plan["inspection"]["sites"]} >= {"classifier"}
    assert not (tmp_path / "run").exists()


def test_errors_have_a_message_an_exit_code_and_json(tmp_path: Path) -> None:
    done = start("prune", "--objective", "tradez", "--json", check=2)
    assert json.loads(done.stdout)["error"]["kind"] == "ConfigError"
    assert "Did you mean 'trades'" in done.stderr
    assert "Traceback" not in done.stderr
    done = call("report", str(tmp_path / "nowhere"), check=6)
    assert "Was the run evaluated?" in done.stderr
    done = call("prune", "--model", "resnet18", check=2)
    assert "--eps is needed" in done.stderr
    done = call("prune", "--data", "cifar10", "--data-dir", str(tmp_path), "--eps", "8/255", check=3)
    assert str(tmp_path) in done.stderr


def test_help_has_examples_for_every_command() -> None:
    runner = CliRunner()
    for command in (
        "prune",
        "pretrain",
        "finetune",
        "run",
        "export",
        "evaluate",
        "report",
        "inspect",
        "recipes",
    ):
        shown = runner.invoke(app, [command, "--help"])
        assert shown.exit_code == 0
        assert "Example" in shown.output
        assert f"robustcompress {command}" in shown.output or command == "run"


def test_recipes_are_listed_and_printed(tmp_path: Path) -> None:
    runner = CliRunner()
    assert "default" in runner.invoke(app, ["recipes"]).output.split()
    printed = runner.invoke(app, ["recipes", "default"]).output
    assert Recipe.from_yaml(printed) == Recipe.preset("default")
    path = tmp_path / "mine.yaml"
    path.write_text(printed)
    assert Choices(recipe=str(path), sparsity=0.5).to_recipe().sparsity == 0.5


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.startswith("robustcompress 0.")


def test_choices_replace_the_recipes_settings() -> None:
    recipe = Choices(
        model="resnet18",
        data="cifar10",
        data_dir=Path("somewhere"),
        objective="pgd",
        eps="8/255",
        eval_eps="0.05",
        pattern="channel",
        ignore=["stem*"],
        stages="prune, finetune",
        settings=["finetune.epochs=7", "pretrain.optimizer=adam"],
        seed=3,
    ).to_recipe()
    assert recipe.model is not None
    assert recipe.objective.kind == "pgd"
    assert recipe.threat.eps == 8 / 255
    assert recipe.evaluation_threat.eps == 0.05
    assert recipe.pattern.kind == "channel"
    assert recipe.ignore == ("stem*",)
    assert recipe.stages == ("prune", "finetune")
    assert (recipe.finetune.epochs, recipe.pretrain.optimizer, recipe.seed) == (7, "adam", 3)
    assert recipe.data is not None
    assert recipe.data.dir == Path("somewhere")


def test_settings_reach_members_that_were_named_or_left_at_their_default() -> None:
    recipe = Choices(
        model="resnet18",
        eps="0.1",
        settings=["model.width=8", "objective.steps=2", "validation.attack.steps=3"],
    ).to_recipe()
    assert recipe.model is not None
    assert recipe.model.model_dump()["width"] == 8
    assert recipe.objective.model_dump()["steps"] == 2
    assert recipe.validation.attack.model_dump()["steps"] == 3


def test_the_default_keeps_its_settings_when_one_is_changed() -> None:
    changed = Choices(sparsity=0.95).to_recipe()
    assert changed == Recipe.preset("default").model_copy(update={"sparsity": 0.95})


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="--set takes name=value; got 'epochs'"):
        Choices(settings=["epochs"]).to_recipe()


def test_attacks_are_read_with_their_settings() -> None:
    assert parse_attack("pgd") == {"kind": "pgd"}
    assert parse_attack("apgd:steps=5,loss=dlr") == {"kind": "apgd", "steps": 5, "loss": "dlr"}
    with pytest.raises(ConfigError, match="--attack takes kind:name=value"):
        parse_attack("pgd:5")


def test_a_free_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert free_folder("a") == Path("runs/a")
    os.makedirs("runs/a")
    os.makedirs("runs/a-2")
    assert free_folder("a") == Path("runs/a-3")


def test_a_factory_from_the_shell_needs_permission(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))\n"
    )
    asked = ["inspect", "--model", "mine:make", "--data", "fashion-mnist-mini", "--json"]
    done = call(*asked, check=2)
    assert "--allow-import" in done.stderr
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    allowed = subprocess.run(
        [sys.executable, "-m", "robustcompress.cli.main", *asked, "--allow-import"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert json.loads(allowed.stdout)["weights"] == 784 * 20 + 200


def test_a_recipe_file_runs(tmp_path: Path) -> None:
    values = yaml.safe_load(Recipe.preset("default").to_yaml())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**values, "stages": ["prune"]}))
    out = tmp_path / "run"
    call("run", str(path), "--out", str(out), "--set", "score=magnitude")
    assert (out / "stages" / "prune" / "artifact.json").exists()
    tuned = tmp_path / "tuned"
    call(
        *("finetune", "--weights", str(out / "stages" / "prune"), "--out", str(tuned), "--json"),
        *QUICK,
    )
    assert (tuned / "artifact" / "artifact.json").exists()


def test_constraints_on_the_command_line_reach_the_recipe() -> None:
    recipe = Choices(constraints=["macs=25%", "latency_ms=2", "bytes = 300kB"]).to_recipe()
    found = recipe.constraints
    assert (found.macs, found.latency_ms, found.bytes, found.weights) == (0.25, 2.0, 300_000, None)
    with pytest.raises(ConfigError, match="--constraint takes name=value, such as macs=25%; got 'macs'"):
        Choices(constraints=["macs"]).to_recipe()
