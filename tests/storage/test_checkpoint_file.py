import builtins
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustcompress.errors import StorageError
from robustcompress.storage.checkpoint_file import _number, _NumpyType, read_checkpoint
from robustcompress.storage.sparse_file import write_tensors


def written(path: Path, content: object, *, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


class Attack:
    """A pickle of it calls a function of the attacker's choice."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "number", [np.float64(0.1), np.float32(0.5), np.int64(-3), np.bool_(True), np.uint8(7), 0.25]
)
def test_a_checkpoint_with_numpy_scalars_in_its_optimizer_is_read(
    tmp_path: Path, number: object, zipped: bool
) -> None:
    optimizer = {"state": {}, "param_groups": [{"lr": number}]}
    content = {
        "epoch": 3,
        "state_dict": {"a": torch.arange(3.0)},
        "best_prec1": number,
        "optimizer": optimizer,
    }
    found = read_checkpoint(written(tmp_path / "c.pth.tar", content, zipped=zipped))
    assert found.key == "state_dict"
    assert list(found.tensors) == ["a"]
    assert torch.equal(found.tensors["a"], torch.arange(3.0))


def test_the_numbers_are_those_of_numpy() -> None:
    # A checkpoint's numbers are read and not used, so ask the stand-ins themselves.
    for value in (
        np.float64(0.1),
        np.float16(2.5),
        np.int32(-7),
        np.uint16(9),
        np.bool_(False),
        np.dtype(">f4").type(3),
    ):
        restored: Any = value.__reduce__()  # NumPy's function, and what a pickle calls it with
        dtype, data = restored[1]
        stand_in = _NumpyType(dtype.str[1:])
        stand_in.__setstate__((3, dtype.str[0]))
        assert _number(stand_in, data) == value
    big = _NumpyType("f8")
    big.__setstate__((3, ">"))
    assert _number(big, np.array(0.1, dtype=">f8").tobytes()) == 0.1
    with pytest.raises(ValueError, match="no plain number"):
        _number(_NumpyType("O8"), b"")


@pytest.mark.parametrize("key", [None, "ema.model", "model"])
def test_tensors_are_found_where_the_caller_says_or_in_the_usual_places(
    tmp_path: Path, key: str | None
) -> None:
    content = {"model": {"w": torch.ones(1)}, "ema": {"model": {"w": torch.zeros(1)}}}
    found = read_checkpoint(written(tmp_path / "c.pt", content), key=key)
    assert found.key == (key or "model")
    assert float(found.tensors["w"]) == (0 if key == "ema.model" else 1)


def test_a_bare_state_dict_and_safetensors_plain_or_ours_are_read(tmp_path: Path) -> None:
    tensors = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    save_file(tensors, tmp_path / "plain.safetensors")
    (tmp_path / "ours.safetensors").write_bytes(write_tensors(tensors))
    written(tmp_path / "bare.pt", OrderedDict(tensors))
    for name in ("plain.safetensors", "ours.safetensors", "bare.pt"):
        found = read_checkpoint(tmp_path / name)
        assert found.key == ""
        assert found.tensors.keys() == tensors.keys()
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "ran"
    content = {"state_dict": {"w": torch.ones(1)}, "args": Attack(builtins.open, str(marker), "w")}
    path = written(tmp_path / "c.pt", content, zipped=zipped)
    with pytest.raises(StorageError, match=r"would run '.*open' when read, which is refused"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"would run 'torch.nn.modules.linear.Linear'.*save torch.save\(model"
    ):
        read_checkpoint(written(tmp_path / "c.pt", nn.Linear(1, 1)))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is none"):
        read_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "bad.safetensors").write_text("hello")
    with pytest.raises(StorageError, match=r"expected what torch.save writes; it cannot be read"):
        read_checkpoint(tmp_path / "text.pt")
    with pytest.raises(StorageError, match="cannot be read as safetensors"):
        read_checkpoint(tmp_path / "bad.safetensors")
    damaged = written(tmp_path / "c.pt", {"w": torch.ones(100)})
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(StorageError, match="damaged"):
        read_checkpoint(damaged)
    (tmp_path / "deep.pt").write_bytes(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(StorageError):
        read_checkpoint(tmp_path / "deep.pt")


def test_entries_without_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected tensors by name; got list"):
        read_checkpoint(written(tmp_path / "a.pt", [torch.ones(1)]))
    path = written(tmp_path / "b.pt", {"weights": {"w": torch.ones(1)}, "epoch": 3})
    with pytest.raises(StorageError, match=r"2 entries among them 'weights'.*--key"):
        read_checkpoint(path)
    with pytest.raises(
        StorageError, match=r"no entry 'weigths'. Did you mean 'weights'\? It has weights, epoch"
    ):
        read_checkpoint(path, key="weigths")
    with pytest.raises(StorageError, match="'epoch': expected tensors by name; got int"):
        read_checkpoint(path, key="epoch")
    sparse = {"w": torch.eye(2).to_sparse()}
    with pytest.raises(StorageError, match="'w', which is no dense tensor"):
        read_checkpoint(written(tmp_path / "c.pt", sparse))
