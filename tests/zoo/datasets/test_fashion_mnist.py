import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from robustcompress.errors import DataError
from robustcompress.zoo.datasets import Split
from robustcompress.zoo.datasets.fashion_mnist import FashionMnist

PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}


@pytest.fixture(autouse=True)
def _no_files_in_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(FashionMnist, "debian_dir", tmp_path / "debian")


def write_split(
    folder: Path, split: Split, labels: list[int], *, zipped: bool, images: int | None = None
) -> None:
    """Write ``images`` 2x3 pictures, picture i filled with i, and ``labels``."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(labels) if images is None else images
    pixels = np.repeat(np.arange(count, dtype=np.uint8), 6).tobytes()
    contents = {
        "images-idx3-ubyte": bytes([0, 0, 8, 3]) + struct.pack(">III", count, 2, 3) + pixels,
        "labels-idx1-ubyte": bytes([0, 0, 8, 1]) + struct.pack(">I", len(labels)) + bytes(labels),
    }
    for part, content in contents.items():
        name = f"{PREFIX[split]}-{part}"
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_splits_are_read_from_gzipped_and_from_plain_files(tmp_path: Path, zipped: bool) -> None:
    write_split(tmp_path, "train", [3, 9, 0], zipped=zipped)
    write_split(tmp_path, "test", [5], zipped=zipped)
    data = FashionMnist(dir=tmp_path)
    train, test = data.load("train"), data.load("test")
    assert train.images.shape == (3, 1, 2, 3)
    assert train.images[:, 0, 1, 2].tolist() == [0, 1, 2]
    assert train.labels.tolist() == [3, 9, 0]
    assert test.labels.tolist() == [5]
    assert (train.name, test.name) == ("fashion-mnist train", "fashion-mnist test")
    assert len(train.classes) == 10


def test_the_cache_comes_before_debians_folder(tmp_path: Path) -> None:
    write_split(tmp_path / "debian", "train", [1], zipped=True)
    assert FashionMnist().load("train").labels.tolist() == [1]
    write_split(tmp_path / "home/.cache/robustcompress/fashion-mnist", "train", [2], zipped=False)
    assert FashionMnist().load("train").labels.tolist() == [2]


def test_images_and_labels_are_never_taken_from_two_folders(tmp_path: Path) -> None:
    cache = tmp_path / "home/.cache/robustcompress/fashion-mnist"
    write_split(tmp_path / "debian", "train", [1], zipped=True)
    write_split(cache, "train", [2], zipped=True)
    (cache / "train-labels-idx1-ubyte.gz").unlink()
    assert FashionMnist().load("train").labels.tolist() == [1]


def test_a_folder_that_is_named_is_the_only_one_looked_at(tmp_path: Path) -> None:
    write_split(tmp_path / "debian", "train", [1], zipped=True)
    with pytest.raises(DataError, match=r"tried:\n  \S*typo/train-images-idx3-ubyte.gz\n") as caught:
        FashionMnist(dir=tmp_path / "typo").load("train")
    assert "debian" not in str(caught.value).split("\nInstall")[0]


def test_the_error_names_every_path_and_says_how_to_get_the_files(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        FashionMnist().load("test")
    for folder in (tmp_path / "home/.cache/robustcompress/fashion-mnist", tmp_path / "debian"):
        for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
            assert f"{folder / name}\n" in str(caught.value)
            assert f"{folder / name}.gz\n" in str(caught.value)
    assert "Install Debian's package dataset-fashion-mnist" in str(caught.value)


def test_images_and_labels_of_different_number_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [1, 2], zipped=True, images=3)
    with pytest.raises(DataError, match=r"has 3 images but .* has 2 labels"):
        FashionMnist(dir=tmp_path).load("train")


def test_labels_above_nine_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [1, 10], zipped=True)
    with pytest.raises(DataError, match="fashion-mnist train: labels must be 0 to 9; found 1 to 10"):
        FashionMnist(dir=tmp_path).load("train")
