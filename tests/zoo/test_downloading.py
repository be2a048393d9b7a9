import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from robustcompress import families
from robustcompress.errors import ConfigError, DataError
from robustcompress.zoo.datasets import DataSet
from robustcompress.zoo.datasets.fashion_mnist_mini import FashionMnistMini
from robustcompress.zoo.datasets.mnist import Mnist
from robustcompress.zoo.downloading import Download, fetch


def archive(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def offered(folder: Path, name: str, content: bytes, *, members: tuple[str, ...] = ()) -> Download:
    """Put a file where a file:// address finds it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return Download(((folder / name).as_uri(),), hashlib.md5(content).hexdigest(), members)


def test_a_file_comes_once_and_its_bytes_are_told(tmp_path: Path) -> None:
    download = offered(tmp_path / "there", "a.bin", b"hello")
    told: list[tuple[str, int, int]] = []
    found = fetch([download], tmp_path / "here", progress=lambda *what: told.append(what))
    assert found == [tmp_path / "here/a.bin"]
    assert found[0].read_bytes() == b"hello"
    assert told == [("a.bin", 5, 5)]
    (tmp_path / "there/a.bin").unlink()
    assert fetch([download], tmp_path / "here") == found


def test_of_an_archive_only_what_is_wanted_is_written(tmp_path: Path) -> None:
    content = archive({"d/x.bin": b"x", "../evil": b"e", "d/y.bin": b"y"})
    download = offered(tmp_path / "there", "a.tar.gz", content, members=("d/x.bin", "d/y.bin"))
    found = fetch([download], tmp_path / "here")
    assert [path.read_bytes() for path in found] == [b"x", b"y"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "a.tar.gz",
        "x.bin",
        "y.bin",
    ]


def test_the_next_address_is_tried_where_one_fails_or_sends_something_else(tmp_path: Path) -> None:
    good = offered(tmp_path / "good", "a.bin", b"hello")
    bad = offered(tmp_path / "bad", "a.bin", b"hullo")
    nowhere = (tmp_path / "nowhere/a.bin").as_uri()
    download = Download((nowhere, *bad.urls, *good.urls), good.md5)
    assert fetch([download], tmp_path / "here")[0].read_bytes() == b"hello"


def test_where_nothing_answers_every_address_and_path_is_named(tmp_path: Path) -> None:
    bad = offered(tmp_path / "bad", "a.bin", b"hullo")
    nowhere = (tmp_path / "nowhere/a.bin").as_uri()
    with pytest.raises(DataError, match=r"a\.bin cannot be fetched; tried:") as caught:
        fetch([Download((nowhere, *bad.urls), "0" * 32)], tmp_path / "here")
    assert nowhere in str(caught.value)
    assert f"{bad.urls[0]}: expected MD5 {'0' * 32}; got {bad.md5} of 5 bytes" in str(caught.value)
    assert f"put it here:\n  {tmp_path / 'here/a.bin'}" in str(caught.value)
    assert not (tmp_path / "here").exists()


def test_too_much_is_not_taken(tmp_path: Path) -> None:
    offer = offered(tmp_path / "there", "a.bin", b"hello")
    with pytest.raises(DataError, match="sends more than 4 bytes"):
        fetch([Download(offer.urls, offer.md5, most_bytes=4)], tmp_path / "here")


def test_a_wrong_archive_is_refused(tmp_path: Path) -> None:
    broken = offered(tmp_path / "there", "a.tar.gz", b"hello", members=("x",))
    with pytest.raises(DataError, match=r"a\.tar\.gz: is no \.tar\.gz"):
        fetch([broken], tmp_path / "here")
    lacking = offered(tmp_path / "there", "b.tar.gz", archive({"y": b"y"}), members=("x",))
    with pytest.raises(DataError, match=r"b\.tar\.gz: lacks x"):
        fetch([lacking], tmp_path / "here")


def test_a_data_set_reads_what_it_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9]))
    labels = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 5]))
    offers = tuple(
        offered(tmp_path / "there", f"t10k-{part}-ubyte.gz", content)
        for part, content in (("images-idx3", images), ("labels-idx1", labels))
    )
    monkeypatch.setattr(Mnist, "downloads", offers)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Mnist().fetch()[0].parent == tmp_path / "home/.cache/robustcompress/mnist"
    assert Mnist().load("test").images.flatten().tolist() == [7, 9]
    with pytest.raises(ConfigError, match="fashion-mnist-mini has no files to fetch"):
        FashionMnistMini().fetch()


@pytest.mark.parametrize("kind", families.kinds(DataSet.family))
def test_what_is_fetched_has_a_sum_and_is_what_the_data_set_looks_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = DataSet.find(kind)
    if not member.downloads:
        return
    assert all(len(download.md5) == 32 and int(download.md5, 16) for download in member.downloads)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("robustcompress.zoo.datasets.fashion_mnist.FashionMnist.debian_dir", tmp_path)
    place = tmp_path / ".cache/robustcompress" / kind.replace("_", "-")
    for download in member.downloads:
        for name in download.names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"")
    # It looks at these very files: they are found, and are empty.
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"Fetch (it|the file) again|Unpack it again"):
            member.load(split)
