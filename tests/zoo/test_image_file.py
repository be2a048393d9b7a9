import io
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robustcompress.errors import DataError
from robustcompress.zoo.image_file import decode, read_size

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)


def encoded(kind: Literal["PNG", "JPEG"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format=kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@settings(deadline=None, max_examples=150)
@given(kind=st.sampled_from(("PNG", "JPEG")), position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_gives_an_image_of_three_channels_or_an_error_that_names_the_file(
    folder: Path, kind: Literal["PNG", "JPEG"], position: int, value: int
) -> None:
    content = bytearray(encoded(kind))
    content[position % len(content)] = value
    path = folder / "changed.png"
    path.write_bytes(content)
    try:
        height, width = read_size(path)
        pixels = decode(path, channels=3, side=None)
    except DataError as error:
        complaint = str(error)
    else:
        complaint = str(path) if pixels.shape == (3, height, width) else f"shape {pixels.shape}"
    assert str(path) in complaint


@settings(deadline=None, max_examples=100)
@given(kind=st.sampled_from(("PNG", "JPEG")), share=st.floats(0, 0.9))
def test_an_image_cut_short_is_refused(folder: Path, kind: Literal["PNG", "JPEG"], share: float) -> None:
    content = encoded(kind)
    path = folder / "cut.jpg"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cut\.jpg: expected a PNG or JPEG image"):
        decode(path, channels=3, side=None)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("side", [20_000, 9_600])
def test_a_header_that_claims_far_too_many_pixels_is_refused(tmp_path: Path, side: int) -> None:
    """Pillow raises above 179 million pixels and only warns above 89 million."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b""))
    with pytest.raises(DataError, match=r"bomb\.png: expected a PNG or JPEG image; got Image size .*pixels"):
        read_size(path)


def test_a_damaged_tag_that_leaves_the_pixels_alone_is_no_reason_to_refuse(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[270] = "a description"
    content = tags.tobytes()
    entry = content.index(struct.pack(">H", 270))
    damaged = bytearray(content)
    damaged[entry + 4 : entry + 8] = b"\x7f\x7f\x7f\x7f"  # the tag's count: far beyond the end of the data
    path = tmp_path / "tagged.jpg"
    Image.fromarray(PIXELS).save(path, exif=bytes(damaged))  # no density, so Pillow reads the tags
    Image.fromarray(PIXELS).save(tmp_path / "plain.jpg")
    expected = decode(tmp_path / "plain.jpg", channels=3, side=None)
    assert np.array_equal(decode(path, channels=3, side=None), expected)


def test_sixteen_bit_images_are_refused_because_pillow_would_clip_them(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match=r"deep\.png: expected 8 bits a channel; got Pillow's mode I"):
        decode(path, channels=1, side=None)


def test_other_formats_are_refused_even_under_an_image_name(tmp_path: Path) -> None:
    path = tmp_path / "bitmap.png"
    Image.fromarray(PIXELS).save(path, format="BMP")
    with pytest.raises(DataError, match=r"bitmap\.png: expected a PNG or JPEG image"):
        decode(path, channels=3, side=None)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_eight_bit_mode_becomes_the_channels_asked_for(
    tmp_path: Path, mode: str, channels: int
) -> None:
    path = tmp_path / "image"
    Image.fromarray(PIXELS).convert("L" if mode == "LA" else "RGB").convert(mode).save(
        path, format="JPEG" if mode == "CMYK" else "PNG"
    )
    assert decode(path, channels=channels, side=None).shape == (channels, 9, 11)
    assert decode(path, channels=channels, side=5).shape == (channels, 5, 5)
