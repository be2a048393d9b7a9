from pathlib import Path

import numpy as np
import pytest

from robustcompress.errors import ConfigError, DataError
from robustcompress.zoo.datasets.numpy_files import NumpyFiles

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 0])


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_both_layouts_are_read_from_one_file_or_two(tmp_path: Path, pair: bool, last: bool) -> None:
    images = IMAGES.transpose(0, 2, 3, 1) if last else IMAGES
    for split in ("train", "test"):
        if pair:
            np.save(tmp_path / f"{split}_images.npy", images)
            np.save(tmp_path / f"{split}_labels.npy", LABELS.astype(np.uint8))
        else:
            np.savez(tmp_path / f"{split}.npz", images=images, labels=LABELS)
    train, test = NumpyFiles(dir=tmp_path).load("train"), NumpyFiles(dir=tmp_path).load("test")
    assert np.array_equal(train.images.numpy(), IMAGES)
    assert train.labels.tolist() == test.labels.tolist() == [2, 0, 1, 0]
    assert train.classes == ("0", "1", "2")
    assert train.name == f"{tmp_path.name} train"


def test_grey_images_get_a_channel_and_test_images_the_classes_of_training(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=IMAGES[:, 0], labels=LABELS)
    np.savez(tmp_path / "test.npz", images=IMAGES[:2, 0], labels=np.array([0, 1]))
    test = NumpyFiles(dir=tmp_path).load("test")
    assert test.images.shape == (2, 1, 5, 6)
    assert test.classes == ("0", "1", "2")
    named = NumpyFiles(dir=tmp_path, class_names=("a", "b", "c", "d"))
    assert named.load("train").classes == ("a", "b", "c", "d")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"numpy-files: needs 'dir' \(--data-dir\)"):
        NumpyFiles().load("train")
    with pytest.raises(DataError, match="numpy-files: found no test images") as caught:
        NumpyFiles(dir=tmp_path).load("test")
    for name in ("test.npz", "test_images.npy", "test_labels.npy"):
        assert f"\n  {tmp_path / name}" in str(caught.value)
    np.savez(tmp_path / "train.npz", x=IMAGES)
    with pytest.raises(DataError, match="expected the arrays images and labels; got x"):
        NumpyFiles(dir=tmp_path).load("train")


def test_other_types_shapes_and_pickles_are_refused(tmp_path: Path) -> None:
    def refused(message: str, **arrays: object) -> None:
        np.savez(tmp_path / "train.npz", **arrays)  # type: ignore[arg-type]  # NumPy's stub knows arrays only
        with pytest.raises(DataError, match=message):
            NumpyFiles(dir=tmp_path).load("train")

    refused(r"images must be uint8 .* got float64 .*\(255 \* images\)", images=IMAGES / 255, labels=LABELS)
    refused(r"labels must be integers \[count\]; got float64", images=IMAGES, labels=LABELS / 2)
    refused(r"got int64 \[4, 1\]", images=IMAGES, labels=LABELS[:, None])
    refused("labels must be 0 to 2; found -1 to 2", images=IMAGES, labels=np.array([2, -1, 0, 0]))
    refused("without pickled objects", images=IMAGES, labels=np.array([object()], dtype=object))
    (tmp_path / "train.npz").write_bytes(b"hello")
    with pytest.raises(DataError, match="expected a NumPy file without pickled objects"):
        NumpyFiles(dir=tmp_path).load("train")
