"""The command compare: its table, its JSON, its page."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustcompress import Report
from robustcompress.cli.main import app
from robustcompress.errors import StorageError
from tests.report.conftest import report as report  # a fixture


@pytest.fixture
def runs(report: Report, tmp_path: Path) -> list[str]:
    folders = [tmp_path / "a", tmp_path / "b"]
    for place, folder in enumerate(folders):
        (folder / "report").mkdir(parents=True)
        (folder / "export").mkdir()
        (folder / "export" / "model.onnx").write_bytes(b"other bytes than the report's")
        smaller = report.files[0].model_copy(update={"size_bytes": 100_000 - place})
        made = report.model_copy(update={"files": (smaller,)})
        (folder / "report" / "report.json").write_text(made.model_dump_json())
    return [str(folder) for folder in folders]


def test_json_holds_every_row_and_nothing_else(runs: list[str]) -> None:
    done = CliRunner().invoke(app, ["compare", *runs, "--no-latency", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [row["size_bytes"] for row in found["rows"]] == [99_999, 100_000]
    assert {row["note"] for row in found["rows"]} == {"the file was changed since it was judged"}


def test_the_table_is_shown_and_the_page_written(runs: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["compare", *runs, "--seconds", "0", "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "99,999" in done.stdout
    assert str(page) in done.stdout.replace("\n", "")
    assert page.read_text().startswith("<!doctype html>")


def test_folders_that_hold_no_report_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert isinstance(done.exception, StorageError)
    assert "there is nothing to compare" in str(done.exception)
