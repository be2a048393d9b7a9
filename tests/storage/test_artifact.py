import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustcompress.errors import StorageError
from robustcompress.storage.artifact import Artifact, has_artifact, load_artifact, save_artifact
from robustcompress.storage.sparse_file import write_tensors


def example(**changes: Any) -> Artifact:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator)
    mask = torch.rand(32, 64, generator=generator) < 0.1
    fields: dict[str, Any] = {
        "stage": "prune",
        "tensors": {"fc.weight": weight * mask, "fc.bias": torch.ones(32), "bn.count": torch.tensor(3)},
        "seed": 2**63,
        "architecture": {"kind": "small_cnn", "widths": [16, 32]},
        "recipe": {"sparsity": 0.9, "objective": {"kind": "trades", "beta": 6.0}},
        "threat": {"norm": "linf", "eps": 0.1},
        "metrics": {"clean": 0.9, "history": [1, 2.5, None, True]},
        "sparsity": {"fc": {"size": 2048, "kept": int(mask.sum())}},
        "versions": {"torch": "2.13"},
        "data_fingerprint": "abc",
        "extra_tensors": {"fc.mask": mask, "fc.scores": weight},
    }
    return Artifact(**{**fields, **changes})


def assert_equal(a: Artifact, b: Artifact) -> None:
    plain = (
        "stage",
        "seed",
        "architecture",
        "recipe",
        "threat",
        "metrics",
        "sparsity",
        "versions",
        "data_fingerprint",
    )
    for name in plain:
        assert getattr(a, name) == getattr(b, name), name
    for tensors, others in ((a.tensors, b.tensors), (a.extra_tensors, b.extra_tensors)):
        assert set(tensors) == set(others)
        for name, tensor in tensors.items():
            assert tensor.dtype == others[name].dtype
            assert torch.equal(tensor, others[name])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_artifact_comes_back_as_it_was(tmp_path: Path) -> None:
    save_artifact(example(), tmp_path / "runs" / "a")
    back = load_artifact(tmp_path / "runs" / "a")
    assert_equal(back, example())
    assert back.shapes == {"fc.weight": (32, 64), "fc.bias": (32,), "bn.count": ()}
    assert names(tmp_path / "runs" / "a") == ["artifact.json", "masks.safetensors", "model.safetensors"]


def test_the_least_artifact_comes_back(tmp_path: Path) -> None:
    least = Artifact(stage="x", tensors={}, seed=0)
    save_artifact(least, tmp_path / "a")
    assert_equal(load_artifact(tmp_path / "a"), least)
    assert names(tmp_path / "a") == ["artifact.json", "model.safetensors"]


def test_equal_artifacts_give_equal_files(tmp_path: Path) -> None:
    save_artifact(example(), tmp_path / "a")
    reordered = dict(reversed(list(example().tensors.items())))
    save_artifact(example(tensors=reordered, threat={"eps": 0.1, "norm": "linf"}), tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_manifest_gives_size_and_hash_of_the_files_on_disk(tmp_path: Path) -> None:
    save_artifact(example(), tmp_path)
    listed = json.loads((tmp_path / "artifact.json").read_text())["files"]
    assert set(listed) == {"model.safetensors", "masks.safetensors"}
    for name, entry in listed.items():
        data = (tmp_path / name).read_bytes()
        assert entry == {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_second_save_replaces_the_first_and_its_masks(tmp_path: Path) -> None:
    save_artifact(example(), tmp_path / "a")
    save_artifact(example(stage="compact", extra_tensors={}), tmp_path / "a")
    assert load_artifact(tmp_path / "a").stage == "compact"
    assert names(tmp_path / "a") == ["artifact.json", "model.safetensors"]
    assert names(tmp_path) == ["a"]


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(StorageError, match=r"holds 'thesis\.tex', which is no part of an artifact"):
        save_artifact(example(), tmp_path)
    assert names(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"loss": float("nan")}}, r"artifact\.json: metrics\.loss: expected a finite number"),
        ({"recipe": {"model": object()}}, r"artifact\.json: recipe\.model: expected plain data"),
        ({"seed": -1}, r"artifact\.json: seed: .*greater than or equal to 0; got -1\. Correct the artifact"),
        ({"seed": 2**64}, r"artifact\.json: seed: .*less than"),
        ({"stage": ""}, r"artifact\.json: stage: String should have at least 1"),
        ({"versions": {"torch": 2}}, r"artifact\.json: versions\.torch: .*valid string; got 2"),
        ({"sparsity": {"a": {"size": 3, "kept": 4}}}, r"sparsity\.a: .*kept must be at most size, 3"),
        ({"sparsity": {"a": {"size": 3}}}, r"sparsity\.a\.kept: Field required"),
        ({"tensors": {"z": torch.zeros(1, dtype=torch.complex64)}}, "tensor 'z': expected a dense tensor"),
    ],
)
def test_an_artifact_that_could_not_be_read_back_is_not_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_artifact(example(), tmp_path / "a")
    with pytest.raises(StorageError, match=message):
        save_artifact(example(**changes), tmp_path / "a")
    assert_equal(load_artifact(tmp_path / "a"), example())


def test_an_artifact_is_found_even_between_the_two_renames_of_a_killed_save(tmp_path: Path) -> None:
    save_artifact(example(), tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / ".a.old")
    assert has_artifact(tmp_path / "a")
    assert_equal(load_artifact(tmp_path / "a"), example())


@pytest.mark.parametrize("place", ["none", "empty", "a file"])
def test_a_place_without_an_artifact_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_text("x")
    assert not has_artifact(tmp_path / place)
    with pytest.raises(StorageError, match=f"{place} holds no artifact: artifact.json is missing"):
        load_artifact(tmp_path / place)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "artifact.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def set_in(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


MODEL = "model.safetensors"
FIELDS = [
    *["format", "schema_version", "stage", "seed", "data_fingerprint", "architecture", "recipe", "threat"],
    *["metrics", "versions", "sparsity", "shapes", "extra_shapes", "files"],
]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_required(tmp_path: Path, name: str) -> None:
    save_artifact(example(), tmp_path)
    edit(tmp_path, lambda value: value.pop(name))
    with pytest.raises(StorageError, match=rf"artifact\.json: {name}: (Field required|expected 1; got None)"):
        load_artifact(tmp_path)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_its_type(tmp_path: Path, name: str) -> None:
    save_artifact(example(), tmp_path)
    edit(tmp_path, set_in(name, to=[1.5]))
    with pytest.raises(StorageError, match=rf"artifact\.json: {name}: .*got \[1\.5\]"):
        load_artifact(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("schema_version", to=2), r"schema_version 2 is newer than 1, .*Upgrade robustcompress"),
        (set_in("format", to="zip"), r"artifact\.json: format: Input should be 'robustcompress-artifact'"),
        (set_in("more", to=1), r"artifact\.json: more: Extra inputs are not permitted"),
        (
            set_in("shapes", "fc.bias", to=[-1]),
            r"artifact\.json: shapes\.fc\.bias\.0: .*greater than or equal to 0",
        ),
        (
            set_in("shapes", "fc.bias", to=[33]),
            r"model\.safetensors: tensors\.fc\.bias\.shape: expected \[33\]; got",
        ),
        (set_in("shapes", "more", to=[1]), r"model\.safetensors: tensors missing: \['more'\]"),
        (
            set_in("extra_shapes", "fc.mask", to=[9]),
            r"masks\.safetensors: tensors\.fc\.mask\.shape: expected \[9\]",
        ),
        (set_in("files", MODEL, "size_bytes", to=7), r"model\.safetensors: expected 7 bytes .*got"),
        (set_in("files", MODEL, "size_bytes", to=-7), r"files\.model\.safetensors\.size_bytes: .*greater"),
        (
            set_in("files", MODEL, "sha256", to="0" * 64),
            r"model\.safetensors: expected SHA-256 0{64} .*files\.model",
        ),
        (
            set_in("files", MODEL, "sha256", to="xyz"),
            r"files\.model\.safetensors\.sha256: String should match",
        ),
        (
            set_in("files", "../secret", to={}),
            r"files\.\.\./secret\.\[key\]: Input should be 'model\.safetensors'",
        ),
        (set_in("files", "/etc/passwd", to={}), r"files\./etc/passwd\.\[key\]: Input should be"),
        (lambda value: value["files"].pop(MODEL), r"the whole: .*files must list model\.safetensors"),
        (
            lambda value: value["files"].pop("masks.safetensors"),
            r"files must list masks\.safetensors if and only if",
        ),
        (set_in("extra_shapes", to={}), r"files must list masks\.safetensors if and only if"),
    ],
)
def test_a_field_that_is_not_true_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    save_artifact(example(), tmp_path)
    edit(tmp_path, change)
    with pytest.raises(StorageError, match=message):
        load_artifact(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "masks.safetensors"])
def test_a_missing_a_truncated_and_a_changed_file_are_refused(tmp_path: Path, name: str) -> None:
    save_artifact(example(), tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    with pytest.raises(StorageError, match=rf"cannot read .*{name}: No such file"):
        load_artifact(tmp_path)
    (tmp_path / name).write_bytes(data[:-1])
    with pytest.raises(
        StorageError, match=rf"{name}: expected {len(data)} bytes \(files\.{name}\.size_bytes"
    ):
        load_artifact(tmp_path)
    (tmp_path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StorageError, match=rf"{name}: expected SHA-256 .* \(files\.{name}\.sha256"):
        load_artifact(tmp_path)


def test_a_file_of_another_kind_is_refused_even_if_its_hash_is_right(tmp_path: Path) -> None:
    save_artifact(example(), tmp_path)
    data = b"\x80\x02c__builtin__\neval\n."  # how a pickle that runs code begins
    (tmp_path / MODEL).write_bytes(data)
    entry = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(tmp_path, set_in("files", MODEL, to=entry))
    with pytest.raises(StorageError, match=r"model\.safetensors is not a safetensors file"):
        load_artifact(tmp_path)


def test_sizes_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    save_artifact(example(tensors={"t": torch.zeros(100_000)}), tmp_path)
    assert len(write_tensors({"t": torch.zeros(100_000)})) < 2000
    with pytest.raises(StorageError, match=r"model\.safetensors: its tensors would take 400000 bytes"):
        load_artifact(tmp_path, max_bytes=399_999)
    with pytest.raises(StorageError, match=r"safetensors: expected at most 100 bytes"):
        load_artifact(tmp_path, max_bytes=100)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    save_artifact(example(), folder)
    return folder


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_is_noticed_or_harmless(saved: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["artifact.json", "model.safetensors", "masks.safetensors"]))
    whole = (saved / name).read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (saved / name).write_bytes(damaged[: data.draw(st.sampled_from([len(whole), len(whole) // 2]))])
    try:
        back = load_artifact(saved)
    except StorageError as error:
        assert "artifact" in str(error)  # noqa: PT017  # the path, at least
    else:
        assert name == "artifact.json"  # a digit of a metric or a letter of a name: nothing depends on it
        assert torch.equal(back.tensors["fc.weight"], example().tensors["fc.weight"])
    finally:
        (saved / name).write_bytes(whole)
