from pathlib import Path

import numpy as np
import pytest

from robustcompress.errors import DataError
from robustcompress.zoo.datasets.cifar100 import Cifar100


def test_the_fine_label_and_the_planes_of_each_record_are_read(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    records = [bytes([4, 99]) + images[0].tobytes(), bytes([19, 0]) + images[1].tobytes()]
    (folder / "train.bin").write_bytes(b"".join(records))
    train = Cifar100(dir=tmp_path).load("train")
    assert train.labels.tolist() == [99, 0]
    assert np.array_equal(train.images.numpy(), images)
    assert (len(train.classes), train.classes[0], train.classes[99]) == (100, "apple", "worm")
    assert train.name == "cifar100 train"
    assert Cifar100(dir=folder).load("train").labels.tolist() == [99, 0]


def test_what_is_missing_or_of_the_other_cifar_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match="cifar100: found no test images") as caught:
        Cifar100().load("test")
    place = tmp_path / ".cache/robustcompress/cifar100"
    assert f"{place}/test.bin\n" in str(caught.value)
    assert f"{place}/cifar-100-binary/test.bin\n" in str(caught.value)
    (tmp_path / "test.bin").write_bytes(bytes(3073))
    with pytest.raises(DataError, match="records of 3074 bytes; got 3073"):
        Cifar100(dir=tmp_path).load("test")
    (tmp_path / "test.bin").write_bytes(bytes([0, 100]) + bytes(3072))
    with pytest.raises(DataError, match=r"labels must be 0 to 99; found 100\. Is it .* CIFAR-100 \(not 10\)"):
        Cifar100(dir=tmp_path).load("test")
