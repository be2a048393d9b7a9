"""Runs beside each other: their reports as they are, their files timed."""

import shutil
from pathlib import Path

import pytest

from robustcompress import Report
from robustcompress.errors import StorageError
from robustcompress.pipeline.comparing import compare
from robustcompress.storage.atomic import write_bytes


def change(run: Path, **changes: object) -> None:
    path = run / "report" / "report.json"
    write_bytes(path, Report.read(path).model_copy(update=changes).model_dump_json().encode())


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> list[Path]:
    """Copies of a run, without its alarms; the second one's file was attacked at another radius."""
    folders = [Path(shutil.copytree(finished, tmp_path / name)) for name in ("a", "b", "c")]
    measurements = Report.read(finished / "report" / "report.json").measurements
    for folder in folders:
        change(folder, reliability={})
    farther = [row.model_copy(update={"eps": 0.5 if row.eps is not None else None}) for row in measurements]
    change(folders[1], measurements=tuple(farther))
    return folders


def test_runs_are_compared_and_their_files_timed(runs: list[Path], tmp_path: Path) -> None:
    found = compare(runs, page=tmp_path / "page.html", seconds=0)
    notes = {row.name: row.note for row in found.rows}
    a, b, c = (f"{run}/model.onnx" for run in runs)
    assert notes[a] == notes[c] == ""
    assert notes[b].startswith("other threat: Linf eps 0.5 instead of Linf eps 0.05")
    assert [row.name for row in found.rows if row.on_front] == [a, c]
    for row in found.rows:
        assert row.timing is not None
        assert row.size_bytes == Path(row.name).parent.joinpath("export", "model.onnx").stat().st_size
    assert "ONNX Runtime" in found.machine
    assert a in (tmp_path / "page.html").read_text()


def test_latency_need_not_be_measured(runs: list[Path]) -> None:
    found = compare(runs, latency=False)
    assert [row.timing for row in found.rows] == [None] * 3
    assert found.machine == ""


def test_a_file_that_was_changed_or_is_gone_is_not_ranked(runs: list[Path]) -> None:
    with (runs[0] / "export" / "model.onnx").open("ab") as file:
        file.write(b"\x7a\x00")
    (runs[2] / "export" / "model.onnx").unlink()
    found = compare([runs[0], runs[2]], seconds=0)
    notes = {Path(row.name).parent: row.note for row in found.rows}
    assert notes[runs[0]] == "the file was changed since it was judged"
    assert notes[runs[2]] == "the file is gone"
    assert [row.on_front for row in found.rows if row.note] == [False, False]


def test_folders_without_a_report_are_left_out_and_named(runs: list[Path], tmp_path: Path) -> None:
    found = compare([tmp_path / "empty", runs[0]], latency=False)
    assert len(found.rows) == 1
    assert found.left_out[0].startswith(str(tmp_path / "empty"))
    assert "Was the run evaluated?" in found.left_out[0]


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is nothing to compare: .*Was the run evaluated"):
        compare([tmp_path])
    with pytest.raises(StorageError, match="there is nothing to compare: no folder was given"):
        compare([])
