from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustcompress import Compressor, pseudo_label
from robustcompress.errors import ConfigError, DataError, ModelError
from tests.pipeline.conftest import Residual, bars, recipe


class Brightness(nn.Module):
    """Says class 1 for bright images, the surer the further from half."""

    def forward(self, images: Tensor) -> Tensor:
        bright = 8 * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack([-bright, bright, torch.full_like(bright, -20.0)], 1)


class OnlySmall(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(len(images), 4)


def folder(path: Path) -> Path:
    for name, grey in (("b/dark.png", 10), ("a/bright.jpg", 240), ("c.png", 120)):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (grey, grey, grey)).save(path / name)
    (path / "notes.txt").write_text("no image")
    return path


def test_images_of_a_folder_get_the_networks_classes(tmp_path: Path) -> None:
    out = tmp_path / "extra.npz"
    found = pseudo_label(folder(tmp_path / "in"), Brightness(), out, image_size=4, batch_size=2, device="cpu")
    assert (found.per_class, found.unsure, found.corrupt) == ((2, 1, 0), 0, ())
    arrays = np.load(out)
    assert arrays["images"].shape == (3, 3, 4, 4)
    assert arrays["images"][:, 0, 0, 0].tolist() == pytest.approx([240, 10, 120], abs=2)  # by their paths
    assert arrays["labels"].tolist() == [1, 0, 0]
    bright = 16 * (240 / 255 - 0.5)
    assert arrays["confidence"][0] == pytest.approx(1 / (1 + np.exp(-bright)), abs=0.01)


def test_unsure_and_corrupt_ones_are_left_out_where_asked(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    (source / "bad.png").write_bytes(b"nonsense")
    options: dict[str, Any] = {"min_confidence": 0.9, "device": "cpu"}
    with pytest.raises(DataError, match=r"bad\.png: expected a PNG or JPEG image"):
        pseudo_label(source, Brightness(), tmp_path / "o.npz", **options)
    found = pseudo_label(source, Brightness(), tmp_path / "o.npz", skip_corrupt=True, **options)
    assert (found.per_class, found.unsure) == ((1, 1, 0), 1)
    assert found.as_dict()["corrupt"] == [str(source / "bad.png")]


def test_an_array_of_images_is_labelled_and_a_recipe_trains_on_it(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", bars(24, 5).images.numpy())
    torch.manual_seed(0)
    found = pseudo_label(tmp_path / "in.npy", Residual(), tmp_path / "extra.npz", device="cpu")
    assert sum(found.per_class) == 24
    stage = {"epochs": 1, "lr": 0.1, "batch_size": 16, "select": "last"}
    extra = {"path": str(tmp_path / "extra.npz"), "share": 0.5}

    def trained(name: str, **changes: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        made = Compressor(
            Residual(),
            recipe=recipe(pretrain=stage, objective="natural", **changes),
            train=bars(60, 0),
            run_dir=tmp_path / name,
            progress=False,
        )
        return made.pretrain().network.state_dict()

    first, again, without = trained("a", extra_data=extra), trained("b", extra_data=extra), trained("c")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], without["stem.weight"])
    # 54 images are not held out: 8 of a batch, in 7 steps; without extra ones 16, in 4.
    counter = "norm.num_batches_tracked"
    assert int(first[counter]) > int(without[counter])


def test_nonsense_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    out = tmp_path / "o.npz"

    def refused(
        kind: type[Exception], message: str, where: Path = source, to: Path = out, **options: Any
    ) -> None:
        network = options.pop("network", Brightness())
        with pytest.raises(kind, match=message):
            pseudo_label(where, network, to, device="cpu", **options)

    refused(ConfigError, r"expected a new \.npz file", to=tmp_path / "o.npy")
    refused(ConfigError, "min_confidence must be 0 to 1; got 2", min_confidence=2)
    refused(DataError, "expected a folder of images or an .npy file", where=tmp_path / "none")
    refused(DataError, "no image has a label of confidence 1.0 or more", min_confidence=1.0, channels=1)
    refused(ModelError, r"cannot be called with images \[3, 3, 6, 8\].*Set image_size", network=OnlySmall())
    (tmp_path / "empty").mkdir()
    refused(DataError, "found no .jpeg, .jpg, .png files", where=tmp_path / "empty")
    Image.new("RGB", (9, 9)).save(source / "z.png")
    refused(DataError, r"z\.png is 9x9, others are 6x8. Set image_size")
    assert not out.exists()
