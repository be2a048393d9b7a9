import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcompress.errors import StorageError
from robustcompress.storage.dtypes import DTYPES, to_array
from robustcompress.storage.state import flatten_optimizer, load_state, restore_optimizer, save_state

STATE_FILE = "state-7.safetensors"


def test_a_state_comes_back_bit_for_bit_negative_zeros_too(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        dtype.name: torch.randint(0, 2, (3, 4), generator=generator).to(dtype.torch) for dtype in DTYPES
    }
    tensors |= {
        "zeros": torch.tensor([-0.0, 0.0, float("nan")]),
        "scalar": torch.tensor(2.0),
        "": torch.zeros(0, 3),
    }
    tensors["channels_last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    values = {
        "step": 12,
        "best": float("-inf"),
        "loss": float("nan"),
        "lr": 0.1,
        "list": [1, None, True, {"a": "é"}],
    }
    save_state(tmp_path / "run" / STATE_FILE, tensors, values)
    back, back_values = load_state(tmp_path / "run" / STATE_FILE)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert to_array(name, back[name])[1].tobytes() == to_array(name, tensor)[1].tobytes()
        back[name].zero_()  # they are ours to change
    assert str(back_values.pop("loss")) == "nan"
    values.pop("loss")
    assert back_values == values


def test_a_state_is_one_file_that_any_safetensors_library_reads(tmp_path: Path) -> None:
    weight = torch.randn(4, 5)
    save_state(tmp_path / STATE_FILE, {"weight": weight}, {"step": 1})
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    assert torch.equal(safetensors.torch.load_file(tmp_path / STATE_FILE)["weight"], weight)


def test_a_new_state_replaces_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("mine")
    save_state(tmp_path / STATE_FILE, {"a": torch.ones(2)}, {"step": 1})
    save_state(tmp_path / STATE_FILE, {"b": torch.ones(3)}, {"step": 2})
    tensors, values = load_state(tmp_path / STATE_FILE)
    assert (list(tensors), values) == (["b"], {"step": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", STATE_FILE]


@pytest.mark.parametrize(
    ("tensors", "values", "message"),
    [
        ({"z": torch.zeros(1, dtype=torch.complex64)}, {}, "tensor 'z': expected a dense tensor"),
        ({"__metadata__": torch.zeros(1)}, {}, "cannot be called '__metadata__'"),
        ({"\ud800": torch.zeros(1)}, {}, "lone surrogate"),
        ({}, {"a": {"b": object()}}, r"values: a\.b: expected plain data"),
        ({}, {"a": {1: 2}}, r"values: a: expected text as key; got 1"),
    ],
)
def test_what_cannot_be_stored_is_named_and_the_old_state_stays(
    tmp_path: Path, tensors: dict[str, Tensor], values: dict[str, object], message: str
) -> None:
    save_state(tmp_path / STATE_FILE, {}, {"step": 1})
    with pytest.raises(StorageError, match=message):
        save_state(tmp_path / STATE_FILE, tensors, values)
    assert load_state(tmp_path / STATE_FILE)[1] == {"step": 1}


def test_a_missing_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*state-7\.safetensors: No such file"):
        load_state(tmp_path / STATE_FILE)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / STATE_FILE)
    with pytest.raises(StorageError, match="is no training state: expected the one metadata key"):
        load_state(tmp_path / STATE_FILE)


def test_a_state_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / STATE_FILE
    save_state(path, {}, {})
    path.write_bytes(path.read_bytes().replace(b'schema_version\\":1', b'schema_version\\":7'))
    with pytest.raises(StorageError, match="metadata: schema_version 7 is newer than 1"):
        load_state(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / STATE_FILE
    save_state(path, {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(3)}, {"step": 3, "lr": 0.1})
    return path


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_is_noticed(saved: Path, data: st.DataObject) -> None:
    path = saved
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    expected = load_state(saved)
    path.write_bytes(damaged[: data.draw(st.sampled_from([len(whole), len(whole) - 1, len(whole) // 2]))])
    try:
        tensors, values = load_state(saved)
    except StorageError as error:
        assert STATE_FILE in str(error)  # noqa: PT017
    else:  # white space of the header, at most
        assert values == expected[1]
        assert all(torch.equal(tensors[name], tensor) for name, tensor in expected[0].items())
    finally:
        path.write_bytes(whole)


# ---- optimizers --------------------------------------------------------------------------------------------


def two_groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": parameters[:1], "lr": 0.2}, {"params": parameters[1:]}]


Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.8, 0.95), amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True, momentum=0.5),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, history_size=3),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2)),
    "groups": lambda p: torch.optim.SGD(two_groups(p), lr=0.1, momentum=0.9),
}


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images, target = torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)
        if not isinstance(optimizer.param_groups[0]["lr"], Tensor):
            optimizer.param_groups[0]["lr"] *= 0.97  # as a schedule does

        def closure(images: Tensor = images, target: Tensor = target) -> float:
            optimizer.zero_grad()
            loss = (model(images) - target).square().mean()
            loss.backward()
            return float(loss.detach())

        optimizer.step(closure)


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, kind: str) -> None:
    make = OPTIMIZERS[kind]
    whole = network(0)
    whole_optimizer = make(parameters(whole))
    train(whole, whole_optimizer, range(9))

    first = network(0)
    optimizer = make(parameters(first))
    train(first, optimizer, range(4))
    tensors, values = flatten_optimizer(optimizer)
    weights = {f"model.{name}": tensor for name, tensor in first.state_dict().items()}
    path = tmp_path / STATE_FILE
    save_state(path, {**weights, **{f"optimizer.{n}": t for n, t in tensors.items()}}, {"optimizer": values})

    second = network(1)
    loaded, loaded_values = load_state(path)
    second.load_state_dict({n.removeprefix("model."): t for n, t in loaded.items() if n.startswith("model.")})
    resumed = make(parameters(second))
    saved_values: Any = loaded_values["optimizer"]
    restore_optimizer(resumed, {n.removeprefix("optimizer."): t for n, t in loaded.items()}, saved_values)
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    train(second, resumed, range(4, 9))

    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a.detach().view(torch.int32), b.detach().view(torch.int32))
    ends, others = flatten_optimizer(whole_optimizer), flatten_optimizer(resumed)
    assert ends[1] == others[1]
    assert all(torch.equal(tensor, others[0][name]) for name, tensor in ends[0].items())


def test_an_optimizer_that_never_stepped_comes_back(tmp_path: Path) -> None:
    model = network(0)
    tensors, values = flatten_optimizer(torch.optim.Adam(model.parameters(), lr=0.3))
    assert tensors == {}
    restored = torch.optim.Adam(model.parameters(), lr=0.1)
    restore_optimizer(restored, tensors, json.loads(json.dumps(values)))
    assert restored.param_groups[0]["lr"] == 0.3
    assert restored.param_groups[0]["betas"] == (0.9, 0.999)


def test_flattened_tensors_are_the_live_ones_and_restored_ones_are_copies() -> None:
    model = network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, range(1))
    live, values = flatten_optimizer(optimizer)
    kept = {name: tensor.clone() for name, tensor in live.items()}
    train(model, optimizer, range(1, 3))
    assert not any(torch.equal(tensor, kept[name]) for name, tensor in live.items())
    tensors = {name: tensor.clone() for name, tensor in kept.items()}
    restore_optimizer(optimizer, tensors, values)
    train(model, optimizer, range(1, 3))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in tensors.items())


def stepped() -> tuple[torch.optim.Optimizer, dict[str, Tensor], dict[str, Any]]:
    model = network(0)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, range(1))
    tensors, values = flatten_optimizer(optimizer)
    return optimizer, tensors, values


def test_the_state_of_another_optimizer_or_network_is_refused() -> None:
    _, tensors, values = stepped()
    with pytest.raises(StorageError, match="expected that of SGD; got that of Adam"):
        restore_optimizer(torch.optim.SGD(network(0).parameters(), 0.1), tensors, values)
    with pytest.raises(StorageError, match="its parameters have other shapes or another order"):
        restore_optimizer(torch.optim.Adam(nn.Linear(6, 5).parameters()), tensors, values)


def test_a_missing_tensor_is_named() -> None:
    optimizer, tensors, values = stepped()
    del tensors["state.2.exp_avg"]
    with pytest.raises(StorageError, match=r"tensor 'state\.2\.exp_avg' is missing"):
        restore_optimizer(optimizer, tensors, values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": 3}, "optimizer state: optimizer: .*got 3"),
        ({"state": {"0": {"dicts": {}}}}, "expected one of 'tensor', 'tuple', 'dict'"),
        ({"state": {"x": {"dict": {}}}}, "optimizer state does not fit Adam"),
        ({"param_groups": []}, "optimizer state does not fit Adam"),
        ({"param_groups": [3]}, "optimizer state does not fit Adam"),
        ({"more": 1}, "optimizer state: more: Extra inputs"),
    ],
)
def test_a_malformed_state_is_refused(changes: dict[str, object], message: str) -> None:
    optimizer, tensors, values = stepped()
    with pytest.raises(StorageError, match=message):
        restore_optimizer(optimizer, tensors, {**values, **changes})


def test_a_state_that_is_not_plain_is_refused() -> None:
    optimizer, _, _ = stepped()
    optimizer.param_groups[0]["callback"] = object()
    with pytest.raises(
        StorageError, match=r"group\.0\.callback: expected tensors, numbers, text .*got object"
    ):
        flatten_optimizer(optimizer)


def test_state_that_belongs_to_no_parameter_is_refused() -> None:
    optimizer, _, _ = stepped()
    entry: Any = {}
    optimizer.state["extra"] = entry  # type: ignore[index]  # torch allows any key
    with pytest.raises(StorageError, match="expected the index of a parameter; got 'extra'"):
        flatten_optimizer(optimizer)


def test_the_values_of_an_optimizer_are_plain_json() -> None:
    _, tensors, values = stepped()
    assert json.loads(json.dumps(values)) == values
    assert all(name.startswith("state.") for name in tensors)
