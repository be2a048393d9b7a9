import json
from pathlib import Path

import numpy as np
import torch
from typer.testing import CliRunner

from robustcompress.cli.main import app
from robustcompress.pipeline.importing import import_checkpoint
from robustcompress.zoo.networks import Network
from tests.pipeline.test_pseudo_labels import folder


def test_a_folder_is_labelled_by_an_artifact(tmp_path: Path) -> None:
    settings = {"kind": "small_cnn", "in_channels": 3, "image_size": 4, "num_classes": 3}
    torch.save(Network.find(settings).build().state_dict(), tmp_path / "c.pt")
    import_checkpoint(tmp_path / "c.pt", tmp_path / "net", network=settings)
    source = folder(tmp_path / "in")
    (source / "bad.png").write_bytes(b"nonsense")

    def command(name: str, *more: str) -> list[str]:
        arguments = ["pseudo-label", str(source), "--artifact", str(tmp_path / "net"), "--image-size", "4"]
        return [*arguments, "--skip-corrupt", "--out", str(tmp_path / name), "--device", "cpu", *more]

    done = CliRunner().invoke(app, command("a.npz"))
    assert done.exit_code == 0, done.output
    assert "3 images, by class" in done.stdout
    assert f"left out {source / 'bad.png'}, which is corrupt" in done.stdout
    found = json.loads(CliRunner().invoke(app, command("b.npz", "--json")).stdout)
    assert sum(found["per_class"]) == 3
    least = float(np.load(tmp_path / "a.npz")["confidence"].min())
    unsure = CliRunner().invoke(app, command("c.npz", "--min-confidence", str(least + 1e-6)))
    assert "left out 1 images of smaller confidence" in unsure.stdout
