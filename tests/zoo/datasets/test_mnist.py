from pathlib import Path

import pytest

from robustcompress.errors import DataError
from robustcompress.zoo.datasets.mnist import Mnist
from tests.zoo.datasets.test_fashion_mnist import write_split


def test_files_are_found_in_the_folder_or_where_torchvision_puts_them(tmp_path: Path) -> None:
    write_split(tmp_path / "MNIST" / "raw", "train", [3, 9, 0], zipped=True)
    train = Mnist(dir=tmp_path).load("train")
    assert train.labels.tolist() == [3, 9, 0]
    assert (train.name, train.classes) == ("mnist train", tuple("0123456789"))
    write_split(tmp_path, "train", [1], zipped=False)
    assert Mnist(dir=tmp_path).load("train").labels.tolist() == [1]


def test_the_error_names_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match="mnist: expected the images and the labels of test") as caught:
        Mnist().load("test")
    for folder in ("mnist", "mnist/MNIST/raw"):
        path = tmp_path / ".cache/robustcompress" / folder / "t10k-labels-idx1-ubyte.gz"
        assert f"{path}\n" in str(caught.value)
