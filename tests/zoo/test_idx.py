import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from robustcompress.errors import DataError
from robustcompress.zoo.idx import read_idx

SMALL = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """Write the format from its description: the other half of the reader under test."""
    dimensions = b"".join(struct.pack(">I", side) for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + dimensions + array.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx")


@settings(deadline=None, max_examples=60)
@given(array=arrays.arrays(np.uint8, SMALL), zipped=st.booleans())
def test_what_is_read_is_what_was_written(folder: Path, array: NDArray[np.uint8], zipped: bool) -> None:
    path = folder / ("array.gz" if zipped else "array")
    path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    back = read_idx(path, dimensions=array.ndim)
    assert back.dtype == np.uint8
    assert back.shape == array.shape
    assert np.array_equal(back, array)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), zipped=st.booleans())
def test_a_file_cut_anywhere_or_with_bytes_too_many_is_refused(
    folder: Path, data: st.DataObject, zipped: bool
) -> None:
    array = data.draw(arrays.arrays(np.uint8, (3, 4, 5)))
    whole = idx_bytes(array)
    length = data.draw(st.integers(0, len(whole) + 40).filter(lambda n: n != len(whole)))
    content = (whole + b"\0" * 40)[:length]
    path = folder / ("cut.gz" if zipped else "cut")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=r"cut(\.gz)?: (expected|the header must|claims)"):
        read_idx(path, dimensions=3)


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, 400))
def test_a_gzip_stream_cut_anywhere_is_refused(folder: Path, cut: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 10, 10), dtype=np.uint8)
    whole = gzip.compress(idx_bytes(pixels))
    assert len(whole) > 400
    path = folder / "stream.gz"
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"stream\.gz: expected"):
        read_idx(path, dimensions=3)


@settings(deadline=None, max_examples=100)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_in_a_gzip_stream_changes_nothing_or_is_refused(
    folder: Path, position: int, value: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 10, 10), dtype=np.uint8)
    content = bytearray(gzip.compress(idx_bytes(pixels)))
    content[position % len(content)] = value
    path = folder / "changed.gz"
    path.write_bytes(content)
    try:
        back = read_idx(path, dimensions=3)
    except DataError as error:
        complaint = str(error)
    else:
        complaint = str(path) if np.array_equal(back, pixels) else "other pixels"
    assert str(path) in complaint


@pytest.mark.parametrize("magic", [b"\0\0\x08\x01", b"\0\0\x0d\x03", b"\0\x01\x08\x03", b"\x89PNG"])
def test_another_type_or_number_of_dimensions_is_refused(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(magic + bytes(100))
    with pytest.raises(DataError, match=f"begins with 00000803; got {magic.hex()}"):
        read_idx(path, dimensions=3)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DataError, match="got an empty file"):
        read_idx(tmp_path / "empty", dimensions=1)


def test_a_header_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"\0\0\x08\x03\0\0\0\x01")
    with pytest.raises(DataError, match="the header must have 16 bytes; got 8"):
        read_idx(tmp_path / "short", dimensions=3)


@pytest.mark.parametrize("zipped", [True, False])
def test_dimensions_that_claim_exabytes_are_refused_before_allocating(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / ("huge.gz" if zipped else "huge")
    content = bytes([0, 0, 8, 3]) + struct.pack(">III", 2**32 - 1, 2**32 - 1, 1) + bytes(50)
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=r"claims \[4294967295, 4294967295, 1\].* cannot hold more than"):
        read_idx(path, dimensions=3)


def test_a_gzip_file_that_holds_more_than_it_claims_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros(10, np.uint8)) + bytes(10_000_000)))
    with pytest.raises(DataError, match=r"claims \[10\], 10 bytes; holds more"):
        read_idx(path, dimensions=1)


def test_a_gzip_file_that_holds_less_than_it_claims_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "less.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros(10, np.uint8))[:-3]))
    with pytest.raises(DataError, match=r"claims \[10\], 10 bytes; holds 7"):
        read_idx(path, dimensions=1)


def test_a_file_that_is_no_gzip_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.gz").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match=r"plain\.gz: expected a readable IDX file; got Not a gzipped file"):
        read_idx(tmp_path / "plain.gz", dimensions=1)
    with pytest.raises(DataError, match=r"absent: expected a readable IDX file; got .*No such file"):
        read_idx(tmp_path / "absent", dimensions=1)
