import hashlib
import importlib.util
import lzma
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pydantic import ValidationError

import robustcompress.zoo.datasets.fashion_mnist_mini as mini
from robustcompress.errors import DataError
from robustcompress.zoo.datasets import Split
from robustcompress.zoo.datasets.fashion_mnist import FashionMnist
from robustcompress.zoo.datasets.fashion_mnist_mini import FashionMnistMini

SCRIPT = Path(__file__).parents[3] / "tools" / "make_fashion_mnist_mini.py"
needs_source = pytest.mark.skipif(
    not FashionMnist.debian_dir.is_dir(),
    reason=f"compares with the full set, which is not in {FashionMnist.debian_dir} (dataset-fashion-mnist)",
)


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_fashion_mnist_mini", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("split", "each"), [("train", 600), ("test", 100)])
def test_the_bundled_set_is_balanced_and_the_classes_take_turns(split: Split, each: int) -> None:
    images = FashionMnistMini().load(split)
    assert images.images.shape == (10 * each, 1, 28, 28)
    assert images.labels.tolist() == list(range(10)) * each
    assert images.name == f"fashion-mnist-mini {split}"


def test_no_image_is_bundled_twice_nor_in_both_splits() -> None:
    data = FashionMnistMini()
    pixels = [bytes(image.numpy()) for split in ("train", "test") for image in data.load(split).images]
    assert len(set(pixels)) == len(pixels) == 7_000


@needs_source
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_bundled_set_is_the_balanced_subset_of_the_full_one(split: Split) -> None:
    full = FashionMnist(dir=FashionMnist.debian_dir)
    subset = FashionMnist(dir=FashionMnist.debian_dir, train_size=6_000, test_size=1_000).load(split)
    assert FashionMnistMini().load(split).fingerprint() == subset.fingerprint()
    # And, without trusting the subset's code: each bundled image is in the full set under its label.
    whole = full.load(split)
    known = {(bytes(i.numpy()), int(y)) for i, y in zip(whole.images, whole.labels, strict=True)}
    bundled = FashionMnistMini().load(split)
    assert all(
        (bytes(i.numpy()), int(y)) in known for i, y in zip(bundled.images, bundled.labels, strict=True)
    )


@needs_source
def test_the_script_makes_the_pixels_that_are_bundled() -> None:
    assert script().bare_pixels(FashionMnist.debian_dir) == lzma.decompress(mini.bundled_file().read_bytes())


def test_the_script_compresses_the_same_pixels_to_the_same_bytes() -> None:
    pixels = FashionMnistMini().load("test").images[:50].numpy().tobytes()
    compress = script().compress
    assert lzma.decompress(compress(pixels)) == pixels
    assert compress(pixels) == compress(pixels)


def test_classes_can_be_told_apart_by_their_mean_image() -> None:
    """Labels that were shifted or images in another order would be at chance, 0.10."""
    train, test = (FashionMnistMini().load(split).images.flatten(1).float() for split in ("train", "test"))
    means = torch.stack([train[label::10].mean(0) for label in range(10)])
    predicted = torch.cdist(test, means).argmin(1)
    accuracy = (predicted == torch.arange(10).repeat(100)).float().mean().item()
    assert accuracy > 0.6  # nearest mean reaches 0.68 on the full set


def test_the_recorded_hash_is_that_of_the_file() -> None:
    assert hashlib.sha256(mini.bundled_file().read_bytes()).hexdigest() == mini.SHA256


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(mini.bundled_file().read_bytes())
    content[1_000_000] ^= 1
    (tmp_path / "damaged.xz").write_bytes(content)
    monkeypatch.setattr(mini, "bundled_file", lambda: tmp_path / "damaged.xz")
    with pytest.raises(
        DataError, match=r"damaged\.xz: expected SHA-256 \w{64}; got \w{64}. The file is damaged"
    ):
        FashionMnistMini().load("train")


def test_a_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "bundled_file", lambda: tmp_path / "absent.xz")
    with pytest.raises(DataError, match=r"absent\.xz: cannot be read: .*Install robustcompress again"):
        FashionMnistMini().load("train")


def test_a_folder_is_refused_because_nothing_would_be_read_from_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValidationError, match="fashion-mnist-mini comes with the package, so dir must not be"
    ):
        FashionMnistMini(dir=tmp_path)


def test_the_licence_lies_beside_the_file() -> None:
    text = Path(mini.__file__).with_name("LICENSE.fashion-mnist").read_text()
    assert "Copyright (c) 2017 Zalando SE, https://tech.zalando.com" in text
    assert 'THE SOFTWARE IS PROVIDED "AS IS"' in text
