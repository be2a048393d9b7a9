import hashlib
import os
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper

from robustcompress.errors import ExportError, StorageError
from robustcompress.export import claims as claims_module
from robustcompress.export.claims import CLAIMS_KEY, bare_sha256, read_claims, without_claims, write_claims
from robustcompress.export.onnx_file import inspect_file
from robustcompress.export.session import OnnxSession
from tests.export.test_onnx_file import small_model

CLAIMS = {"eps": 0.1, "attacks": ["PGD-20x1"], "correct": 17, "für": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.onnx"
    file.write_bytes(small_model().SerializeToString())
    return file


def test_what_is_written_is_read(path: Path) -> None:
    assert read_claims(path) is None
    write_claims(path, CLAIMS)
    assert read_claims(path) == CLAIMS


def test_every_other_byte_stays(path: Path) -> None:
    before = path.read_bytes()
    written = write_claims(path, CLAIMS)
    after = path.read_bytes()
    assert after.startswith(before)
    assert without_claims(after) == before == without_claims(before)
    assert (written.size_bytes, written.sha256) == (len(after), hashlib.sha256(after).hexdigest())
    assert bare_sha256(path) == hashlib.sha256(before).hexdigest()


def test_new_claims_take_the_place_of_old_ones(path: Path) -> None:
    first = write_claims(path, CLAIMS)
    write_claims(path, {"much": "else" * 50})
    assert read_claims(path) == {"much": "else" * 50}
    assert write_claims(path, CLAIMS) == first
    keys = [entry.key for entry in onnx.load(path).metadata_props]
    assert sorted(keys) == sorted(["note", "robustcompress.style", CLAIMS_KEY])


def test_claims_in_the_middle_of_a_file_go_too(path: Path) -> None:
    model = small_model()
    helper.set_model_props(model, {"a": "1", CLAIMS_KEY: "{}", "z": "2"})
    bare = onnx.ModelProto.FromString(without_claims(model.SerializeToString()))
    assert {entry.key: entry.value for entry in bare.metadata_props} == {"a": "1", "z": "2"}
    assert bare.graph == model.graph


def test_fields_of_every_kind_are_kept(path: Path) -> None:
    # Fields that this version of ONNX does not know: a number, eight bytes, four bytes, a text.
    unknown = bytes([0x80 | 0x78, 0x7D]) + b"\x96\x01" + bytes([0x80 | 0x79, 0x7D]) + b"12345678"
    unknown += bytes([0x80 | 0x7D, 0x7D]) + b"1234" + bytes([0x80 | 0x7A, 0x7D]) + b"\x03abc"
    data = path.read_bytes() + unknown
    path.write_bytes(data)
    write_claims(path, CLAIMS)
    assert without_claims(path.read_bytes()) == data


def test_the_file_computes_what_it_computed(path: Path) -> None:
    images = torch.rand(2, 3)
    before = OnnxSession(path)(images)
    write_claims(path, CLAIMS)
    assert torch.equal(OnnxSession(path)(images), before)
    assert inspect_file(path).metadata["note"] == "für alle"


def test_claims_are_replaced_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError):
        write_claims(path, CLAIMS)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"), [("{", "its claims is not valid JSON"), ("[1]", "expected a JSON object")]
)
def test_claims_that_are_none_are_refused(path: Path, text: str, message: str) -> None:
    model = small_model()
    helper.set_model_props(model, {CLAIMS_KEY: text})
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=message):
        read_claims(path)


def test_what_json_cannot_hold_is_refused(path: Path) -> None:
    with pytest.raises(ExportError, match="claims must be plain data"):
        write_claims(path, {"accuracy": float("nan")})


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*gone\.onnx: No such file"):
        write_claims(tmp_path / "gone.onnx", CLAIMS)
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ExportError, match="not an ONNX model"):
        bare_sha256(tmp_path / "text.onnx")
    (tmp_path / "group.onnx").write_bytes(small_model().SerializeToString() + b"\xfb\x7d\xfc\x7d")
    with pytest.raises(ExportError, match=r"group.onnx: not an ONNX model: a field of kind 3 at byte \d+"):
        bare_sha256(tmp_path / "group.onnx")


def test_a_file_that_would_be_too_large_stays_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    monkeypatch.setattr(claims_module, "LARGEST_FILE", len(before) + 10)
    with pytest.raises(ExportError, match="holds at most 2 GB; with its claims it would not fit"):
        write_claims(path, CLAIMS)
    assert path.read_bytes() == before
