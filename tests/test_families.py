import importlib
import re
from pathlib import Path

import pytest

from robustcompress import families
from robustcompress.errors import ConfigError
from robustcompress.member import Member, class_attribute, member_class
from robustcompress.pruning.budgets import Budget
from robustcompress.robustness.attacks import Attack
from robustcompress.training import objectives
from robustcompress.training.objectives import Objective

FAMILIES = [
    "robustcompress.training.objectives",
    "robustcompress.robustness.attacks",
    "robustcompress.robustness.certifiers",
    "robustcompress.pruning.patterns",
    "robustcompress.pruning.scores",
    "robustcompress.pruning.budgets",
    "robustcompress.storage.codecs",
    "robustcompress.zoo.networks",
    "robustcompress.zoo.datasets",
    "robustcompress.export.formats",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_kinds_are_the_files_of_the_folder(family: str) -> None:
    folder = Path(__file__).parent.parent / family.replace(".", "/")
    # A kind that is a word of Python, such as global, has a file with an underscore behind it.
    files = {path.stem.rstrip("_") for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert families.kinds(family) == sorted(files)
    assert files


@pytest.mark.parametrize("family", FAMILIES)
def test_the_type_checkers_see_every_member_that_the_folder_holds(family: str) -> None:
    text = (Path(__file__).parent.parent / family.replace(".", "/") / "__init__.py").read_text()
    announced = set(re.findall(rf"from {re.escape(family)}\.(\w+) import (\w+) as \2", text))
    base = next(
        item
        for item in vars(importlib.import_module(family)).values()
        if isinstance(item, type) and issubclass(item, Member) and item.__dict__.get("family") == family
    )
    members = [member_class(base, kind) for kind in families.kinds(family)]
    real = {(member.__module__.rsplit(".", 1)[-1], member.__name__) for member in members}
    if family != "robustcompress.storage.codecs":  # codecs are no part of the public face
        assert announced == real
    for _, name in real:
        assert class_attribute(base, name).__name__ == name


def test_a_word_of_python_can_be_a_kind() -> None:
    assert families.kind_of("global_") == "global"
    assert families.kind_of("of_") == "of_"
    assert Budget.find("global").kind == "global"
    assert Budget.find({"kind": "global", "scale": "rms"}).model_dump()["kind"] == "global"
    with pytest.raises(ConfigError, match="unknown budget 'global_'"):
        families.load_module(Budget.family, "global_")


def test_an_unknown_kind_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown objective 'tradez'. Did you mean 'trades'\? Known: "):
        families.load_module("robustcompress.training.objectives", "tradez")


def test_what_is_not_a_package_is_no_family() -> None:
    with pytest.raises(ConfigError, match="is not a package"):
        families.kinds("robustcompress.errors")


def test_only_listed_names_are_imported() -> None:
    with pytest.raises(ConfigError, match="unknown attack"):
        families.load_module("robustcompress.robustness.attacks", "..threat")


def test_a_member_is_found_by_name_mapping_or_itself() -> None:
    by_name = Attack.find("pgd")
    assert Attack.find({"kind": "pgd"}) == by_name == Attack.find(by_name)
    assert by_name.kind == "pgd"


def test_dashes_and_underscores_name_the_same_member() -> None:
    from robustcompress.zoo.datasets import DataSet

    assert DataSet.find("fashion-mnist-mini") == DataSet.find("fashion_mnist_mini")


@pytest.mark.parametrize("value", [3, {"steps": 3}, None, {"kind": 5}])
def test_what_names_no_member_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected one of the attacks, by name or as a mapping with 'kind'"):
        Attack.find(value)


def test_a_family_serves_its_classes_by_name() -> None:
    assert objectives.Trades(beta=3.0).kind == "trades"
    with pytest.raises(AttributeError, match="has no member 'Tradez'"):
        _ = objectives.Tradez


def test_a_module_with_two_members_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    module = types.ModuleType("two")
    for name in ("One", "Two"):
        setattr(module, name, type(name, (Objective,), {"__module__": "two", "loss": lambda *_: None}))
    monkeypatch.setattr(families, "load_module", lambda family, kind: module)
    with pytest.raises(ConfigError, match="must define exactly one Objective; it defines 2"):
        member_class(Objective, "two")  # type: ignore[type-abstract]  # only its name is read
