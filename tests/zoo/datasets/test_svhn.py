from pathlib import Path

import numpy as np
import pytest

from robustcompress.errors import DataError
from robustcompress.zoo.datasets.svhn import Svhn
from tests.zoo.test_matlab_file import matlab


def write(folder: Path, images: object, labels: object) -> None:
    (folder / "train_32x32.mat").write_bytes(matlab({"X": np.asarray(images), "y": np.asarray(labels)}))


def test_images_are_turned_and_ten_is_the_digit_zero(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    write(tmp_path, images, np.array([[1], [10], [9], [5]], dtype=np.uint8))
    train = Svhn(dir=tmp_path).load("train")
    assert train.labels.tolist() == [1, 0, 9, 5]
    assert train.images.shape == (4, 3, 32, 32)
    assert int(train.images[2, 1, 5, 7]) == images[5, 7, 1, 2]
    assert train.name == "svhn train"


def test_labels_may_be_doubles(tmp_path: Path) -> None:
    write(tmp_path, np.zeros((32, 32, 3, 2), dtype=np.uint8), np.array([[10.0], [2.0]]))
    assert Svhn(dir=tmp_path).load("train").labels.tolist() == [0, 2]


def test_what_is_missing_or_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"svhn: found no test images; tried:\n  .*svhn/test_32x32\.mat\n"):
        Svhn().load("test")
    write(tmp_path, np.zeros((32, 32, 4, 2), dtype=np.uint8), np.ones((2, 1)))
    with pytest.raises(DataError, match=r"X must be uint8 .* got uint8 \[32, 32, 4, 2\]"):
        Svhn(dir=tmp_path).load("train")
    write(tmp_path, np.zeros((32, 32, 3, 2), dtype=np.uint8), np.array([[0], [11]]))
    with pytest.raises(DataError, match="y must be 1 to 10; found 0 to 11"):
        Svhn(dir=tmp_path).load("train")
