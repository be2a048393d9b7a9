from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustcompress.errors import ConfigError, DataError
from robustcompress.zoo.datasets.image_folder import ImageFolder


def save(path: Path, color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (6, 4)) -> None:
    """Save one plain picture; ``size`` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes; train has two images of the first and one of the second, test one of each."""
    save(tmp_path / "train/dog/1.png", (200, 0, 0))
    save(tmp_path / "train/cat/b.png", (0, 100, 0))
    save(tmp_path / "train/cat/a.png", (0, 0, 50))
    save(tmp_path / "test/cat/x.png", (7, 7, 7))
    save(tmp_path / "test/dog/y.PNG", (8, 8, 8))
    return tmp_path


def test_images_come_class_by_class_in_the_order_of_their_names(root: Path) -> None:
    train, test = ImageFolder(dir=root).load("train"), ImageFolder(dir=root).load("test")
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1]
    assert train.images.shape == (3, 3, 4, 6)
    assert train.images[:, :, 3, 5].tolist() == [[0, 0, 50], [0, 100, 0], [200, 0, 0]]
    assert test.images[:, 0, 0, 0].tolist() == [7, 8]
    assert train.name == f"{root.name} train"


def test_png_pixels_arrive_as_they_were_saved(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for split in ("train", "test"):
        save(tmp_path / split / "only/image.png")
        Image.fromarray(pixels).save(tmp_path / split / "only/image.png")
    loaded = ImageFolder(dir=tmp_path).load("test").images
    assert np.array_equal(loaded[0].numpy(), pixels.transpose(2, 0, 1))


def test_one_channel_turns_colours_grey_by_their_luma(root: Path) -> None:
    images = ImageFolder(dir=root, channels=1).load("train").images
    assert images.shape == (3, 1, 4, 6)
    # ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B.
    expected = [0.114 * 50, 0.587 * 100, 0.299 * 200]
    assert images[:, 0, 0, 0].tolist() == pytest.approx(expected, abs=1)


def test_three_channels_repeat_a_grey_image(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / split / "a/grey.jpg")
        Image.new("L", (5, 5), 99).save(tmp_path / split / "a/grey.jpg")
    images = ImageFolder(dir=tmp_path).load("train").images
    assert images.shape == (1, 3, 5, 5)
    assert (images.int() - 99).abs().max() <= 1


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (37, 20), (20, 37)])
def test_image_size_scales_the_shorter_side_and_keeps_the_middle(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """A ramp along the longer side: the middle square of the scaled image is the middle of the ramp."""
    width, height = size
    ramp = np.linspace(0, 255, max(size))
    grey = np.tile(ramp, (height, 1)) if width > height else np.tile(ramp[:, None], (1, width))
    for split in ("train", "test"):
        save(tmp_path / split / "a/ramp.png")
        Image.fromarray(grey.astype(np.uint8)).save(tmp_path / split / "a/ramp.png")
    image = ImageFolder(dir=tmp_path, channels=1, image_size=10).load("train").images[0, 0].double()
    assert image.shape == (10, 10)
    along = image.mean(0 if width > height else 1)
    steps = 255 / (max(size) - 1) * 2  # two source pixels a target pixel
    expected = 127.5 + steps * (np.arange(10) - 4.5)
    assert np.abs(along.numpy() - expected).max() < 0.55 * steps  # half a pixel where the rest is odd


def test_an_image_that_has_the_size_already_is_left_alone(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for split in ("train", "test"):
        save(tmp_path / split / "a/1.png")
        Image.fromarray(pixels).save(tmp_path / split / "a/1.png")
    loaded = ImageFolder(dir=tmp_path, image_size=8).load("train").images
    assert np.array_equal(loaded[0].numpy(), pixels.transpose(2, 0, 1))


def test_images_of_different_sizes_need_an_image_size(root: Path) -> None:
    save(root / "train/dog/2.png", size=(9, 5))
    with pytest.raises(DataError, match=r"dog/2\.png is 5x9 but .*cat/a\.png is 4x6\. Set image_size"):
        ImageFolder(dir=root).load("train")
    assert ImageFolder(dir=root, image_size=3).load("train").images.shape == (4, 3, 3, 3)


def test_more_pixels_than_the_limit_are_refused_before_decoding(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"3 images of 3x2000x2000 need 34\.3 MiB; the limit is 34\. Set a smaller"
    ):
        ImageFolder(dir=root, image_size=2000, memory_limit_mb=34).load("train")


def test_without_a_folder_it_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"image-folder: needs 'dir' \(--data-dir\)"):
        ImageFolder().load("train")


def test_a_missing_split_is_named(root: Path, tmp_path: Path) -> None:
    for path in sorted((root / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (root / "test").rmdir()
    with pytest.raises(DataError, match=r"/test: expected a folder; got .*No such file"):
        ImageFolder(dir=root).load("test")


def test_a_train_folder_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="expected one folder for each class in train; found none"):
        ImageFolder(dir=tmp_path).load("train")


def test_a_class_that_train_does_not_have_is_refused(root: Path) -> None:
    save(root / "test/bird/1.png")
    with pytest.raises(DataError, match=r"test/bird: is no class of train, which has cat, dog"):
        ImageFolder(dir=root).load("test")


def test_a_class_without_images_is_named(root: Path) -> None:
    (root / "test/dog/y.PNG").unlink()
    with pytest.raises(DataError, match=r"/test: found no images of dog\. Every class"):
        ImageFolder(dir=root).load("test")


def test_a_file_where_a_class_folder_should_be_is_refused(root: Path) -> None:
    (root / "train/notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt: expected a folder"):
        ImageFolder(dir=root).load("train")


def test_hidden_files_are_passed_over_and_other_files_are_refused(root: Path) -> None:
    (root / "train/.DS_Store").write_bytes(b"x")
    (root / "train/cat/.hidden.txt").write_bytes(b"x")
    assert len(ImageFolder(dir=root).load("train")) == 3
    (root / "train/cat/c.webp").write_bytes(b"x")
    with pytest.raises(DataError, match=r"c\.webp: expected \.jpeg, \.jpg, \.png files only"):
        ImageFolder(dir=root).load("train")


@pytest.mark.parametrize("image_size", [None, 4])
def test_a_corrupt_image_is_refused_by_name(root: Path, image_size: int | None) -> None:
    (root / "train/dog/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"nonsense")
    with pytest.raises(DataError, match=r"dog/broken\.png: expected a PNG or JPEG image"):
        ImageFolder(dir=root, image_size=image_size).load("train")


@pytest.mark.parametrize("image_size", [None, 4])
def test_corrupt_images_are_left_out_and_named_where_that_is_asked(
    root: Path, caplog: pytest.LogCaptureFixture, image_size: int | None
) -> None:
    (root / "train/cat/a.png").write_bytes(b"nonsense")  # the first one, which otherwise says the size
    (root / "train/dog/half.png").write_bytes((root / "train/dog/1.png").read_bytes()[:50])
    data = ImageFolder(dir=root, image_size=image_size, corrupt="skip")
    train = data.load("train")
    assert train.labels.tolist() == [0, 1]
    assert train.name.endswith("train (2 corrupt left out)")
    assert "left out 2 of 4 images, which are corrupt: cat/a.png, dog/half.png" in caplog.text
    assert len(data.load("test")) == 2


def test_a_class_of_corrupt_images_alone_is_refused(root: Path) -> None:
    (root / "train/dog/1.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"a class has corrupt images only, such as .*dog/1\.png"):
        ImageFolder(dir=root, corrupt="skip").load("train")
