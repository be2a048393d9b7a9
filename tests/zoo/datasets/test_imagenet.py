from pathlib import Path

import pytest

from robustcompress.data import ImageFiles
from robustcompress.errors import ConfigError
from robustcompress.zoo.datasets.imagenet import Imagenet
from tests.zoo.datasets.test_image_folder import save


def test_val_is_judged_and_classes_are_in_the_order_of_their_synsets(tmp_path: Path) -> None:
    for split, names in (("train", ("n02", "n01", "n01")), ("val", ("n01", "n02"))):
        for number, name in enumerate(names):
            path = tmp_path / split / name / f"{number}.jpg"
            save(path, (80 * number, 0, 0), size=(40, 30))
            path.rename(path.with_suffix(".JPEG"))
    data = Imagenet(dir=tmp_path, image_size=16)
    train, test = data.load("train"), data.load("test")
    assert train.classes == test.classes == ("n01", "n02")
    assert train.labels.tolist() == [0, 0, 1]
    assert test.labels.tolist() == [0, 1]
    assert train.images.shape == (3, 3, 16, 16)
    assert abs(int(train.images[1, 0, 0, 0]) - 160) < 8
    assert Imagenet(dir=tmp_path).load("test").shape == (3, 224, 224)
    assert isinstance(Imagenet(dir=tmp_path, image_size=2000, memory_limit_mb=1).open("train"), ImageFiles)


def test_without_a_folder_it_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"imagenet: needs 'dir' .* train/CLASS and val/CLASS"):
        Imagenet().load("train")
