from pathlib import Path

import pytest

from robustcompress.errors import ConfigError, DataError, StorageError
from robustcompress.pipeline.certificate_file import CertificateFile, read_certificates, united
from robustcompress.robustness.certifiers import Certificate

IDENTITY: dict[str, object] = {"seed": 0, "certifier": {"kind": "smoothing", "sigma": 0.25}}
MADE = [Certificate(index=i, label=1, predicted=1, radius=0.1 * i, counts={"hits": i}) for i in range(3)]


def _written(path: Path) -> Path:
    file = CertificateFile(path, IDENTITY)
    assert file.finished == ()
    for certificate in MADE:
        file.append(certificate)
    return path


def test_what_was_appended_is_finished_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = _written(tmp_path / "new" / "kept.jsonl")
    assert CertificateFile(path, IDENTITY).finished == tuple(MADE)


def test_a_line_cut_short_anywhere_is_dropped_and_the_file_goes_on(tmp_path: Path) -> None:
    whole = _written(tmp_path / "whole").read_bytes()
    path, start = tmp_path / "cut", whole[:-1].rfind(b"\n") + 1
    for end in (0, 5, start, start + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        file = CertificateFile(path, IDENTITY)
        assert file.finished == (tuple(MADE[:2]) if end >= start else ())
        file.append(MADE[2])
        assert CertificateFile(path, IDENTITY).finished == (*file.finished, MADE[2])


def test_certificates_of_something_else_are_refused(tmp_path: Path) -> None:
    path = _written(tmp_path / "kept")
    with pytest.raises(ConfigError, match="holds certificates of something else: seed differ"):
        CertificateFile(path, {**IDENTITY, "seed": 1})


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("my notes\n")
    with pytest.raises(StorageError, match="is no file of certificates"):
        CertificateFile(path, IDENTITY)
    assert path.read_text() == "my notes\n"


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = _written(tmp_path / "kept")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{}\n", *lines[1:]]))
    with pytest.raises(StorageError, match="line 2: expected a certificate; got"):
        CertificateFile(path, IDENTITY)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be used for certificates: Is a directory"):
        CertificateFile(tmp_path, IDENTITY)


def test_what_is_only_read_stays_as_it_is(tmp_path: Path) -> None:
    path = _written(tmp_path / "kept")
    cut = path.read_bytes()[:-3]
    path.write_bytes(cut)
    assert read_certificates(path, IDENTITY) == tuple(MADE[:2])
    assert path.read_bytes() == cut
    with pytest.raises(ConfigError, match="holds certificates of something else: seed differ"):
        read_certificates(path, {**IDENTITY, "seed": 1})
    with pytest.raises(StorageError, match="cannot be read for certificates: No such file"):
        read_certificates(tmp_path / "none", IDENTITY)
    assert not (tmp_path / "none").exists()


def test_files_are_united_in_the_order_of_the_images() -> None:
    assert united([[MADE[2], MADE[0]], [], [MADE[1], MADE[0]]]) == tuple(MADE)


def test_files_that_contradict_each_other_are_refused() -> None:
    other = MADE[1].model_copy(update={"radius": 0.3})
    with pytest.raises(DataError, match=r"image 1 has two certificates that differ: radius 0\.1 and 0\.3"):
        united([MADE, [other]])
