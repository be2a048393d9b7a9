import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustcompress.cli.main import app
from robustcompress.errors import ConfigError
from robustcompress.zoo.datasets.svhn import Svhn
from robustcompress.zoo.downloading import Download


def test_files_are_fetched_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mat").write_bytes(b"hello")
    offer = Download(((tmp_path / "a.mat").as_uri(),), hashlib.md5(b"hello").hexdigest())
    monkeypatch.setattr(Svhn, "downloads", (offer,))
    command = ["fetch", "svhn", "--data-dir", str(tmp_path / "here")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "here/a.mat")
    assert "a.mat  0 MiB 100%" in done.stderr
    assert json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout) == [str(tmp_path / "here/a.mat")]


def test_an_unknown_data_set_is_refused() -> None:
    done = CliRunner().invoke(app, ["fetch", "svnh"])
    assert isinstance(done.exception, ConfigError)
    with pytest.raises(ConfigError, match="Did you mean 'svhn'"):
        raise done.exception
