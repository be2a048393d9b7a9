import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from robustcompress.errors import DataError
from robustcompress.zoo.matlab_file import read_matlab

# MATLAB's class and the type of the numbers, by NumPy's code.
CODES = {
    "f8": (6, 9), "f4": (7, 7), "i1": (8, 1), "u1": (9, 2), "i2": (10, 3), "u2": (11, 4), "i4": (12, 5),
    "i8": (14, 12),
}  # fmt: skip


def element(kind: int, content: bytes, order: str = "<") -> bytes:
    if len(content) <= 4:  # the short form, as MATLAB writes it
        return struct.pack(f"{order}I", len(content) << 16 | kind) + content.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def matlab(arrays: Mapping[str, NDArray[Any]], *, zipped: bool = True, order: str = "<") -> bytes:
    """Return a level-5 file, as the format's description says."""
    content = b"MATLAB 5.0 MAT-file, of a test".ljust(124)
    content += struct.pack(f"{order}H", 0x0100) + (b"IM" if order == "<" else b"MI")
    for name, array in arrays.items():
        group, kind = CODES[array.dtype.str[1:]]
        numbers = array.astype(order + array.dtype.str[1:]).tobytes(order="F")
        parts = element(6, struct.pack(f"{order}II", group, 0), order)
        parts += element(5, struct.pack(f"{order}{array.ndim}i", *array.shape), order)
        parts += element(1, name.encode(), order)
        parts += element(kind, numbers, order)
        whole = element(14, parts, order)
        if zipped:
            data = zlib.compress(whole)
            whole = struct.pack(f"{order}II", 15, len(data)) + data  # compressed elements are not padded
        content += whole
    return content


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", CODES)
def test_arrays_come_back_in_matlabs_order_of_axes(
    tmp_path: Path, dtype: str, zipped: bool, order: str
) -> None:
    array = np.random.default_rng(0).integers(0, 100, (3, 2, 5)).astype(dtype)
    single = np.array([[7]], dtype=dtype)  # in the short form where it fits
    content = matlab({"other": single, "a": array, "s": single}, zipped=zipped, order=order)
    (tmp_path / "x.mat").write_bytes(content)
    found = read_matlab(tmp_path / "x.mat", ("a", "s"))
    assert found.keys() == {"a", "s"}
    assert np.array_equal(found["a"], array)
    assert np.array_equal(found["s"], single)


def test_whatever_is_cut_off_or_damaged_is_refused(tmp_path: Path) -> None:
    whole = matlab({"a": np.arange(60, dtype=np.uint8).reshape(3, 20)}, zipped=False)
    path = tmp_path / "x.mat"
    for length in range(0, len(whole) - 4, 3):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"x\.mat"):
            read_matlab(path, ("a",))
    generator = np.random.default_rng(0)
    for content in (whole, matlab({"a": np.arange(60, dtype=np.uint8)})):
        for _ in range(200):
            damaged = bytearray(content)
            damaged[generator.integers(126, len(content))] ^= 1 << generator.integers(8)
            path.write_bytes(damaged)
            try:
                read_matlab(path, ("a",))
            except DataError:
                continue


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    with pytest.raises(DataError, match="expected a readable file"):
        read_matlab(path, ("a",))
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match="expected a MATLAB file of level 5"):
        read_matlab(path, ("a",))
    path.write_bytes(matlab({"a": np.ones(3)}))
    with pytest.raises(DataError, match="expected the arrays a, b; b is missing"):
        read_matlab(path, ("a", "b"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (struct.pack("<II", 9, 0), struct.pack("<II", 4, 0), "a is no array of real numbers"),
        (struct.pack("<II", 9, 0), struct.pack("<II", 9 | 0x0800, 0), "a is no array of real numbers"),
        (struct.pack("<ii", 3, 20), struct.pack("<ii", 3, 21), r"a claims \[3, 21\] and has 60 bytes"),
        (struct.pack("<ii", 3, 20), struct.pack("<ii", -3, -20), r"a claims \[-3, -20\] and has 60 bytes"),
    ],
)
def test_claims_that_do_not_hold_are_refused(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    whole = matlab({"a": np.zeros((3, 20), dtype=np.uint8)}, zipped=False)
    assert whole.count(old) == 1
    (tmp_path / "x.mat").write_bytes(whole.replace(old, new))
    with pytest.raises(DataError, match=message):
        read_matlab(tmp_path / "x.mat", ("a",))


def test_a_compressed_element_that_does_not_end_is_refused(tmp_path: Path) -> None:
    data = zlib.compress(element(14, bytes(100)))[:-6]
    content = matlab({})[:128] + struct.pack("<II", 15, len(data)) + data
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(DataError, match="a compressed element does not end"):
        read_matlab(tmp_path / "x.mat", ("a",))
