import json
from pathlib import Path

from typer.testing import CliRunner

from robustcompress.cli.main import app
from robustcompress.errors import ConfigError
from tests.export.test_densifying import written


def test_a_plain_copy_is_written_beside_the_file(tmp_path: Path) -> None:
    source = written(tmp_path / "model.onnx")
    done = CliRunner().invoke(app, ["densify", str(source)])
    assert done.exit_code == 0, done.output
    size = (tmp_path / "model.dense.onnx").stat().st_size
    assert f"{size:,} bytes ({source.stat().st_size:,} before), dense" in done.output.replace("\n", "")
    assert "same logits on 4 random images, bit for bit" in done.output


def test_json_is_one_value(tmp_path: Path) -> None:
    source, out = written(tmp_path / "model.onnx"), tmp_path / "sparse.onnx"
    arguments = ["densify", str(source), "--out", str(out), "--style", "sparse-initializer", "--json"]
    found = json.loads(CliRunner().invoke(app, arguments).output)
    assert (found["path"], found["style"], found["size_bytes"]) == (
        str(out),
        "sparse-initializer",
        out.stat().st_size,
    )


def test_nonsense_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "model.onnx")
    for arguments, message in (
        (["--style", "thin"], "expected --style dense or sparse-initializer; got 'thin'"),
        (["--out", str(source)], "is the file itself; it is never overwritten"),
    ):
        done = CliRunner().invoke(app, ["densify", str(source), *arguments])
        assert isinstance(done.exception, ConfigError)
        assert message in str(done.exception)
