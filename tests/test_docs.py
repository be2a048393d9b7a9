import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import robustcompress
from robustcompress import Compressor, Threat, errors, events, families
from robustcompress.cli.main import EXIT_CODES
from robustcompress.export.formats import Format
from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.patterns import Pattern
from robustcompress.pruning.scores import Score
from robustcompress.recipe import EvaluationSettings, Recipe, preset_names
from robustcompress.robustness.attacks import Attack
from robustcompress.robustness.certifiers import Certifier
from robustcompress.storage.codecs import Codec
from robustcompress.training.augmentation import Augmentation
from robustcompress.training.objectives import Objective
from robustcompress.training.settings import StageSettings, ValidationSettings
from robustcompress.zoo.datasets import DataSet
from robustcompress.zoo.networks import Network

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def test_the_command_line_page_is_up_to_date() -> None:
    path = ROOT / "tools" / "write_cli_reference.py"
    spec = importlib.util.spec_from_file_location("write_cli_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "cli.md").read_text() == module.page()


def test_the_exit_codes_on_the_page_are_those_of_the_errors() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)}
    found = [getattr(errors, name) for name in vars(errors) if name.endswith("Error")]
    codes = {error.exit_code for error in found}
    assert listed == codes | {0}
    for code in codes - {1}:
        assert re.search(rf"\b{code}\b", EXIT_CODES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_the_recipe_in_the_docs_is_one() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert Recipe.from_yaml(example).finetune.objective is not None
    for name in preset_names():
        assert f"`{name}`" in text


def test_the_recipes_page_names_every_field() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    for settings in (Recipe, StageSettings, ValidationSettings, EvaluationSettings, Threat, Augmentation):
        for name in settings.model_fields:
            assert f"`{name}`" in text, f"{settings.__name__}.{name}"
    for kind in families.kinds(DataSet.family):
        assert f"`{kind}`" in text


def test_the_reference_holds_every_public_name() -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    shown = set(re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE))
    for name, place in robustcompress._PUBLIC.items():
        module, _, attribute = place.partition(":")
        if attribute:
            assert f"{module}.{attribute}" in shown
        elif module in (errors.__name__, events.__name__):
            assert module in shown
        else:
            members = {families.load_module(module, kind).__name__ for kind in families.kinds(module)}
            assert members == {item.rpartition(".")[0] for item in shown} & members, name


def test_the_contract_of_every_family_is_shown() -> None:
    text = (ROOT / "docs" / "adding-a-member.md").read_text()
    for base in (Objective, Attack, Certifier, Score, Pattern, Budget, Codec, Network, DataSet, Format):
        assert f"::: {base.__module__}.{base.__name__}\n" in text
        for method in base.__abstractmethods__:
            assert f"`{method}(" in text, f"{base.__name__}.{method}"


def blocks(page: str) -> list[str]:
    """Return the Python examples of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_the_example_member_in_the_docs_works() -> None:
    (example,) = blocks("docs/adding-a-member.md")
    namespace: dict[str, object] = {"__name__": "smoothed_labels"}
    exec(example, namespace)
    made: Any = namespace["SmoothedLabels"]
    assert made(amount=0.2).model_dump() == {"kind": "smoothed_labels", "amount": 0.2}


def test_the_examples_of_the_reference_run() -> None:
    for example in blocks("docs/python.md"):
        exec(example, {"__name__": "reference"})


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # 15 s
    (example,) = blocks("README.md")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(example, names)
    assert (tmp_path / "runs" / "mine" / "report" / "report.html").exists()
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(names["again"](images), names["network"](images))


@pytest.mark.slow
def test_the_quickstarts_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # 15 s
    example, _ = blocks("docs/quickstart.md")
    monkeypatch.chdir(tmp_path)
    exec(example, {"__name__": "quickstart"})
    assert (tmp_path / "runs" / "first" / "report" / "report.html").exists()


def test_what_a_run_left_comes_back_as_the_quickstart_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.from_values(
        {
            "model": "small_cnn",
            "data": {"kind": "fashion_mnist_mini", "train_size": 100, "test_size": 10},
            "threat": {"eps": 0.1},
            "stages": ["compact", "export"],
        }
    )
    Compressor(recipe=recipe, run_dir="runs/default", progress=False).compress()
    _, example = blocks("docs/quickstart.md")
    names: dict[str, Any] = {"__name__": "quickstart"}
    exec(example, names)
    images = torch.rand(4, 1, 28, 28)
    assert torch.allclose(names["session"](images), names["network"](images), atol=1e-5)
