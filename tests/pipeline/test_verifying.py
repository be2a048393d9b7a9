"""What a file claims is measured again, and false claims are refuted."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from robustcompress import load
from robustcompress.data import ImageSet
from robustcompress.errors import ConfigError, DataError, ExportError, StorageError
from robustcompress.export.claims import read_claims, without_claims, write_claims
from robustcompress.export.session import OnnxSession
from robustcompress.pipeline import verifying
from robustcompress.pipeline.claims import Claims, beside, claims_of, digest_of, images_sha256, record_claims
from robustcompress.pipeline.exporting import check_files, read_index
from robustcompress.pipeline.verifying import Verification, verify
from tests.pipeline.conftest import Residual, bars, compressor, recipe

TEST = bars(30, 1)
EVALUATION = {
    "attacks": [{"kind": "pgd", "steps": 3}, {"kind": "square", "queries": 20}],
    "threat": {"eps": 0.2},
    "curve": [],
    "examples": 2,
    "alarms": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose file and artifact claim what was measured."""
    folder = tmp_path_factory.mktemp("verified") / "run"
    made = compressor(folder, recipe=recipe(evaluation=EVALUATION))
    result = made.compress()
    assert result.report is not None
    record_claims(made._context, result.files, result.report.measurements)
    return folder


@pytest.fixture
def file(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(run / "export" / "model.onnx", tmp_path / "model.onnx"))


def verdicts(found: Verification) -> dict[tuple[str, str], str]:
    return {(item.claim.attack, item.claim.access): item.verdict for item in found.checked}


def changed(file: Path, **changes: Any) -> Path:
    claims = read_claims(file)
    assert claims is not None
    write_claims(file, {**claims, **changes})
    return file


def with_claim(file: Path, attack: str, access: str, share: float) -> Path:
    claims = claims_of(file)
    rows = [
        {**row.model_dump(), "correct": round(share * claims.count)}
        if (row.attack, row.access) == (attack, access)
        else row.model_dump()
        for row in claims.claims
    ]
    return changed(file, claims=rows)


def test_true_claims_of_a_file_are_confirmed(file: Path) -> None:
    found = verify(file, TEST, device="cpu")
    seen = verdicts(found)
    assert not found.refuted
    assert seen[("clean", "none")] == "confirmed"
    assert seen[("PGD-3x1", "white-box")] == "confirmed"
    assert seen[("Square-20x1", "black-box")] == "confirmed"
    assert seen[("PGD-3x1", "transfer")] == "not re-run"
    assert seen[("worst case", "white-box")] in ("confirmed", "within")
    assert found.differing == {}
    assert {item.found.count for item in found.checked if item.found} == {30}


def test_true_claims_of_an_artifact_are_confirmed(run: Path) -> None:
    made = load(run / "artifact", model=Residual())
    network = verify(run / "artifact", TEST, network=made, device="cpu")
    assert set(verdicts(network).values()) <= {"confirmed", "within"}
    assert verdicts(network)[("PGD-3x1", "white-box")] == "confirmed"


def test_a_claim_of_more_than_is_found_is_refuted(file: Path) -> None:
    found = verify(with_claim(file, "PGD-3x1", "white-box", 1.0), TEST, device="cpu")
    assert verdicts(found)[("PGD-3x1", "white-box")] == "refuted"
    assert found.refuted


def test_a_claim_of_less_is_conservative_under_attack_and_refuted_clean(file: Path) -> None:
    found = verify(with_claim(file, "clean", "none", 0.0), TEST, device="cpu")
    assert verdicts(found)[("clean", "none")] == "refuted"
    assert next(row.correct for row in claims_of(file).claims if row.attack.startswith("Square")) > 8
    less = verify(with_claim(file, "Square-20x1", "black-box", 0.0), TEST, device="cpu")
    assert verdicts(less)[("Square-20x1", "black-box")] == "conservative"


def test_a_claim_beside_what_is_found_lies_within_the_interval(file: Path) -> None:
    honest = next(
        c.correct for c in claims_of(file).claims if (c.attack, c.access) == ("PGD-3x1", "white-box")
    )
    near = honest + 1 if honest < 15 else honest - 1
    found = verify(with_claim(file, "PGD-3x1", "white-box", near / 30), TEST, device="cpu")
    assert verdicts(found)[("PGD-3x1", "white-box")] == "within"


def test_the_index_knows_the_file_with_its_claims(run: Path) -> None:
    files = read_index(run / "export")
    check_files(files)
    assert files[0].size_bytes == (run / "export" / "model.onnx").stat().st_size
    assert claims_of(run / "export" / "model.onnx").sha256 != files[0].sha256


def test_claims_survive_json_and_say_how_they_were_made(file: Path) -> None:
    claims = claims_of(file)
    assert Claims.model_validate_json(claims.model_dump_json()) == claims
    assert (claims.threat.eps, claims.batch_size, claims.count, claims.judged_on) == (0.2, 30, 30, "test")
    assert [str(attack) for attack in claims.attacks] == ["PGD-3x1", "Square-20x1"]
    assert claims.sha256 == digest_of(file)


def test_other_versions_are_told(file: Path) -> None:
    versions = {**claims_of(file).versions, "torch": "1.0"}
    found = verify(changed(file, versions=versions), TEST, device="cpu")
    assert list(found.differing) == ["torch"]
    assert found.differing["torch"][0] == "1.0"


def test_without_a_twin_what_needs_gradients_is_not_run_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise ExportError("Foo is an operation that nothing is known of")

    monkeypatch.setattr(verifying, "read_twin", unknown)
    found = verify(file, TEST, device="cpu")
    row = next(item for item in found.checked if item.claim.key == ("PGD-3x1", "white-box", ""))
    assert (row.verdict, row.reason) == ("not re-run", "Foo is an operation that nothing is known of")
    assert verdicts(found)[("Square-20x1", "black-box")] == "confirmed"


def test_a_changed_file_is_not_what_its_claims_are_about(file: Path) -> None:
    with pytest.raises(ExportError, match="is not what its claims are about"):
        verify(changed(file, sha256="0" * 64), TEST)


def test_other_images_are_refused(file: Path) -> None:
    with pytest.raises(
        DataError, match="claims something about 30 test images of a data set of its maker; these"
    ):
        verify(file, bars(30, 2))


def test_a_file_that_claims_nothing_is_refused(file: Path) -> None:
    file.write_bytes(without_claims(file.read_bytes()))
    with pytest.raises(ExportError, match=r"model\.onnx claims nothing"):
        verify(file, TEST)


def test_claims_that_cannot_be_understood_are_refused(file: Path) -> None:
    with pytest.raises(
        ExportError, match="its claims cannot be understood: schema_version: Input should be 1"
    ):
        verify(changed(file, schema_version=2), TEST)


def test_a_folder_without_claims_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    with pytest.raises(StorageError, match=r"artifact.claims.json: cannot be read"):
        claims_of(folder)
    beside(folder).write_text("{")
    with pytest.raises(ExportError, match="not JSON"):
        claims_of(folder)
    with pytest.raises(StorageError, match=r"cannot read .*safetensors"):
        digest_of(folder)


def test_a_data_set_that_does_not_exist_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="fashion"):
        verify(file, "fashion-mist")
    with pytest.raises(
        ConfigError, match="data: test_size: Input should be greater than or equal to 1; got 0"
    ):
        verify(file, {"kind": "fashion_mnist_mini", "test_size": 0})


def test_the_digest_of_images_does_not_depend_on_their_batches() -> None:
    one, many = list(TEST.batches(30)), list(TEST.batches(7))
    assert images_sha256(one, 30) == images_sha256(many, 30)
    assert images_sha256(one, 29) != images_sha256(one, 30)
    other = ImageSet(TEST.images, TEST.labels.roll(1), TEST.classes, "x")
    assert images_sha256(other.batches(30), 30) != images_sha256(one, 30)


def test_the_file_still_computes_what_it_computed(file: Path) -> None:
    images = next(TEST.batches(4))[0]
    assert OnnxSession(file)(images).shape == (4, 3)
