"""What every data set of the zoo promises."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from robustcompress import families
from robustcompress.data import ImageSet
from robustcompress.errors import ConfigError
from robustcompress.zoo.datasets import DataSet, Split
from robustcompress.zoo.datasets.fashion_mnist_mini import FashionMnistMini

KINDS = families.kinds(DataSet.family)


class Stripes(DataSet):
    """Six images of class 0 and six of class 1 for training, two of each for testing."""

    def read(self, split: Split) -> ImageSet:
        count = 12 if split == "train" else 4
        return ImageSet(
            images=torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1),
            labels=torch.arange(count) // (count // 2),
            classes=("a", "b"),
            name=f"stripes {split}",
        )


def test_the_zoo_has_the_data_sets_of_the_papers() -> None:
    assert set(KINDS) >= {
        "cifar10",
        "cifar100",
        "fashion_mnist",
        "fashion_mnist_mini",
        "image_folder",
        "imagenet",
        "mnist",
        "numpy_files",
        "svhn",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_data_set_survives_the_way_through_its_settings(kind: str) -> None:
    settings = {"kind": kind, "train_size": 20, "test_size": 10, "subset_seed": 3}
    for member in (DataSet.find(kind), DataSet.find(settings)):
        assert member.kind == kind
        assert DataSet.find(member.model_dump()) == member
        assert DataSet.find(member.model_dump(mode="json")) == member


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fashion_mnist_mini"])
def test_a_folder_survives_the_way_through_json(kind: str) -> None:
    member = DataSet.find({"kind": kind, "dir": "some/folder"})
    assert member.dir == Path("some/folder")
    assert DataSet.find(member.model_dump(mode="json")) == member


def test_a_name_with_hyphens_is_found() -> None:
    assert DataSet.find("fashion-mnist-mini") == FashionMnistMini()


def test_sizes_choose_a_balanced_subset_of_their_own_split_and_the_name_says_so() -> None:
    data = Stripes(train_size=4, subset_seed=2)
    train, test = data.load("train"), data.load("test")
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert train.name == "stripes train (4 balanced, seed 2)"
    assert len(test) == 4
    assert test.name == "stripes test"
    assert Stripes(test_size=2).load("test").labels.tolist() == [0, 1]
    assert len(Stripes(test_size=2).load("train")) == 12


def test_a_size_that_does_not_fit_the_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="stripes train: a balanced subset needs a positive multiple of 2"):
        Stripes(train_size=3).load("train")


@pytest.mark.parametrize("field", ["train_size", "test_size"])
def test_a_size_below_one_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=rf"{field}\s+Input should be greater than or equal to 1"):
        DataSet.find({"kind": "cifar10", field: 0})
