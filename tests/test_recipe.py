from pathlib import Path
from typing import Any

import pytest
import torch

from robustcompress.errors import ConfigError
from robustcompress.recipe import Factory, Recipe, preset_names, with_changes
from robustcompress.robustness.threat import Threat
from robustcompress.training.objectives import Objective


def test_the_defaults_are_hydras() -> None:
    recipe = Recipe(threat=Threat(eps=8 / 255))
    assert recipe.objective == Objective.find({"kind": "trades", "beta": 6.0})
    assert (recipe.pretrain.epochs, recipe.prune.epochs, recipe.finetune.epochs) == (100, 20, 100)
    assert (recipe.pretrain.lr, recipe.prune.lr, recipe.finetune.lr) == (0.1, 0.1, 0.01)
    assert (recipe.pretrain.momentum, recipe.pretrain.weight_decay) == (0.9, 1e-4)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_survives_yaml(name: str) -> None:
    recipe = Recipe.preset(name)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.name == name


def test_members_settings_survive_yaml() -> None:
    recipe = Recipe.from_values(
        {
            "threat": {"eps": "8/255", "norm": "l2"},
            "objective": {"kind": "trades", "beta": 2.5},
            "finetune": {"epochs": 3, "lr": 0.5, "objective": {"kind": "pgd", "steps": 3}},
            "evaluation": {"attacks": [{"kind": "pgd", "steps": 7}], "threat": {"eps": 0.5}},
            "model": {"kind": "small_cnn", "in_channels": 3},
            "data": {"kind": "cifar10", "dir": "somewhere"},
        }
    )
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert again.objective.model_dump()["beta"] == 2.5
    assert again.finetune.objective is not None
    assert again.finetune.objective.model_dump()["steps"] == 3
    assert again.evaluation_threat.eps == 0.5
    assert again.threat.eps == pytest.approx(8 / 255)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "threat: Field required"),
        ({"sparcity": 0.5}, r"sparcity: no such setting\. Did you mean 'sparsity'\?"),
        ({"finetune": {"lr": 1, "epoch": 3}}, r"finetune\.epoch: no such setting\. Did you mean 'epochs'\?"),
        ({"objective": "tradez"}, r"objective: unknown objective 'tradez'\. Did you mean 'trades'\?"),
        ({"objective": {"kind": "trades", "beta": -1}}, r"objective\.beta: .*greater than"),
        ({"sparsity": 1.0}, r"sparsity: Input should be less than 1; got 1\.0"),
        ({"threat": {"eps": "8/x"}}, r"threat\.eps: expected a number such as 0\.1 or 8/255"),
        ({"stages": ["prune", "prune"]}, r"stages name each stage once"),
        ({"stages": ["prnue"]}, r"stages\.0: Input should be 'pretrain'"),
        ({"export": ["onnx", "onnx"]}, "each file of export needs its own name"),
        ({"device": "tpu"}, "device: String should match"),
        ({"model": "resnet81"}, r"model: unknown network 'resnet81'\. Did you mean 'resnet18'\?"),
        ({"model": {"factory": "no colon"}}, "model.factory"),
        ({"validation": {"fraction": 1.5}}, r"validation\.fraction: Input should be less than 1"),
    ],
)
def test_a_wrong_setting_is_named_by_its_path(values: dict[str, Any], message: str) -> None:
    whole = values if not values else {"threat": {"eps": 0.1}, **values}
    with pytest.raises(ConfigError, match=message):
        Recipe.from_values(whole)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not YAML"), ("- 1", "expected a mapping of settings; got list")]
)
def test_what_is_no_recipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_yaml(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe .*gone\.yaml cannot be read"):
        Recipe.read(tmp_path / "gone.yaml")


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'defualt'\. Did you mean 'default'"):
        Recipe.preset("defualt")


def test_yaml_runs_no_code() -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        Recipe.from_yaml("name: !!python/object/apply:os.system ['true']")


def test_a_factory_builds_with_its_arguments() -> None:
    network = Factory(factory="torch.nn:Linear", arguments={"in_features": 3, "out_features": 5}).build()
    assert network(torch.zeros(2, 3)).shape == (2, 5)


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        ("no_such_module:make", {}, "cannot be imported"),
        ("torch:no_such_thing", {}, "cannot be imported"),
        ("torch.nn:Linear", {}, "cannot be called"),
        ("builtins:dict", {}, "must return a torch.nn.Module; got dict"),
    ],
)
def test_a_factory_that_fails_says_why(factory: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Factory(factory=factory, arguments=arguments).build()


def test_changes_reach_into_nested_settings() -> None:
    before: dict[str, Any] = {"a": {"b": 1, "c": 2}, "d": "text"}
    assert with_changes(before, {"a.b": 5, "d.e": 6, "f": 7}) == {
        "a": {"b": 5, "c": 2},
        "d": {"kind": "text", "e": 6},
        "f": 7,
    }
    assert before == {"a": {"b": 1, "c": 2}, "d": "text"}
    assert with_changes({"model": "resnet18"}, {"model.width": 8}) == {
        "model": {"kind": "resnet18", "width": 8}
    }


def test_constraints_survive_yaml_and_are_named_by_their_path() -> None:
    wanted = {"macs": "25%", "bytes": "300kB", "latency_ms": 2.0, "latency_table": "phone.json"}
    recipe = Recipe.from_values({"threat": {"eps": 0.1}, "constraints": wanted})
    assert (recipe.constraints.macs, recipe.constraints.bytes) == (0.25, 300_000)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert not Recipe.from_values({"threat": {"eps": 0.1}}).constraints
    with pytest.raises(
        ConfigError, match=r"constraints.macs: expected 0.25, '25%', 50000000 or '50M'; got 'few'"
    ):
        Recipe.from_values({"threat": {"eps": 0.1}, "constraints": {"macs": "few"}})
    with pytest.raises(ConfigError, match=r"constraints.latency: no such setting. Did you mean 'latency_ms'"):
        Recipe.from_values({"threat": {"eps": 0.1}, "constraints": {"latency": 3}})


def test_a_pattern_that_says_the_sparsity_sets_it() -> None:
    recipe = Recipe.from_values({"threat": {"eps": 0.1}, "pattern": {"kind": "n_m", "n": 1, "m": 4}})
    assert recipe.sparsity == 0.75
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert Recipe.from_values({"threat": {"eps": 0.1}, "pattern": "n_m", "sparsity": 0.5}).sparsity == 0.5
    with pytest.raises(
        ConfigError, match=r"'n_m' removes exactly 0\.5 of every layer it fits; got sparsity=0\.9"
    ):
        Recipe.from_values({"threat": {"eps": 0.1}, "pattern": "n_m", "sparsity": 0.9})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pattern": "channel"},
            r"moves masks between single weights; the pattern 'channel' has other units",
        ),
        ({"pattern": "block"}, r"the pattern 'block' has other units\. Use 'unstructured' or 'n_m'"),
        ({"budget": "learned"}, r"the budget 'learned' learns that\. Use 'erk' or 'uniform'"),
        (
            {"score": {"kind": "flying_bird", "plus": True}, "pattern": "n_m"},
            r"plus changes how many weights stay, which the pattern 'n_m' fixes",
        ),
        (
            {"score": {"kind": "flying_bird", "plus": True}, "prune": {"select": "last"}},
            r"plus follows the robust accuracy of every epoch, which prune\.select 'last' does not measure",
        ),
        (
            {"score": {"kind": "flying_bird", "plus": True}, "averaging": {"decay": 0.9}},
            r"plus compares training and validation accuracy of one network; averaging judges another",
        ),
    ],
)
def test_masks_that_move_need_a_pattern_and_a_budget_that_let_them(
    changes: dict[str, Any], message: str
) -> None:
    values = {"threat": {"eps": 0.1}, "score": "flying_bird"}
    assert Recipe.from_values({**values, "pattern": "n_m"}).score.moves
    with pytest.raises(ConfigError, match=message):
        Recipe.from_values({**values, **changes})
