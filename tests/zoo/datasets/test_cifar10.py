from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from robustcompress.errors import DataError
from robustcompress.zoo.datasets.cifar10 import Cifar10


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def write_batch(folder: Path, name: str, labels: list[int], seed: int = 0) -> NDArray[np.uint8]:
    """Write random images with ``labels`` as the authors' page describes; return them [count, 3, 32, 32]."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    content = b"".join(
        bytes([label]) + image[0].tobytes() + image[1].tobytes() + image[2].tobytes()
        for label, image in zip(labels, images, strict=True)
    )
    (folder / name).write_bytes(content)
    return images


def test_batches_are_read_in_order_with_their_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    written = [write_batch(folder, f"data_batch_{n}.bin", [n, 9], seed=n) for n in range(1, 6)]
    tested = write_batch(folder, "test_batch.bin", [0, 4, 7])
    train, test = Cifar10(dir=tmp_path).load("train"), Cifar10(dir=tmp_path).load("test")
    assert train.labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert np.array_equal(train.images.numpy(), np.concatenate(written))
    assert test.labels.tolist() == [0, 4, 7]
    assert np.array_equal(test.images.numpy(), tested)
    assert (train.name, test.name) == ("cifar10 train", "cifar10 test")
    assert train.classes[9] == "truck"


def test_the_inner_folder_may_be_named_itself(tmp_path: Path) -> None:
    write_batch(tmp_path, "test_batch.bin", [1])
    assert Cifar10(dir=tmp_path).load("test").labels.tolist() == [1]


def test_the_cache_is_where_it_looks_without_a_folder(tmp_path: Path) -> None:
    write_batch(tmp_path / "home/.cache/robustcompress/cifar10/cifar-10-batches-bin", "test_batch.bin", [6])
    assert Cifar10().load("test").labels.tolist() == [6]


def test_batches_that_are_not_there_are_left_out_and_the_name_says_so(tmp_path: Path) -> None:
    for number in (4, 2):
        write_batch(tmp_path, f"data_batch_{number}.bin", [number])
    train = Cifar10(dir=tmp_path).load("train")
    assert train.labels.tolist() == [2, 4]
    assert train.name == "cifar10 train (2 of 5 batches)"


def test_the_error_names_every_path_tried(tmp_path: Path) -> None:
    write_batch(tmp_path, "test_batch.bin", [1])
    with pytest.raises(DataError, match="cifar10: found no train images") as caught:
        Cifar10(dir=tmp_path).load("train")
    for folder in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        for number in range(1, 6):
            assert f"{folder}/data_batch_{number}.bin\n" in str(caught.value)
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_a_file_that_is_not_whole_records_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "test_batch.bin").write_bytes(bytes(size))
    with pytest.raises(
        DataError, match=rf"test_batch\.bin: expected .* records of 3073 bytes; got {size} bytes"
    ):
        Cifar10(dir=tmp_path).load("test")


def test_a_label_above_nine_is_refused(tmp_path: Path) -> None:
    write_batch(tmp_path, "test_batch.bin", [1, 10])
    with pytest.raises(DataError, match=r"test_batch\.bin: labels must be 0 to 9; found 10"):
        Cifar10(dir=tmp_path).load("test")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_batch(tmp_path, "test_batch.bin", [1])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("permission denied")

    monkeypatch.setattr(np, "fromfile", refuse)
    with pytest.raises(DataError, match=r"test_batch\.bin: expected a readable file; got permission denied"):
        Cifar10(dir=tmp_path).load("test")
