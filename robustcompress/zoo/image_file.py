"""Decode one PNG or JPEG file into bytes, or say what is wrong with it."""

import struct
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robustcompress.errors import DataError

SUFFIXES = (".jpeg", ".jpg", ".png")
_FORMATS = ("PNG", "JPEG")
# Pillow reads 16-bit and floating-point files into these; its conversion to 8 bits clips instead of scaling.
_DEEP_MODES = ("I", "F")


def read_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from the header of an image file.

    Raises:
        DataError: If the file is no PNG or JPEG image.
    """
    with _opened(path) as image:
        return image.height, image.width


def decode(path: Path, *, channels: int, side: int | None) -> NDArray[np.uint8]:
    """Return the pixels of an image file, uint8 ``[channels, height, width]``.

    Args:
        path: A PNG or JPEG file of 8 bits a channel.
        channels: 1 for grey, 3 for red, green and blue; transparency is dropped.
        side: Scale the shorter side to this (bilinear, antialiased) and cut out the middle square;
            ``None`` keeps the image's size.

    Raises:
        DataError: If the file is no such image or is damaged.
    """
    with _opened(path) as image:
        if image.mode.startswith(_DEEP_MODES):
            raise DataError(
                f"{path}: expected 8 bits a channel; got Pillow's mode {image.mode}. "
                "Convert it first, scaled to 0-255."
            )
        picture = image.convert("L" if channels == 1 else "RGB")
        if side is not None:
            picture = _middle_square(picture, side)
        pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _middle_square(picture: Image.Image, side: int) -> Image.Image:
    shorter = min(picture.size)
    width, height = (max(side, round(length * side / shorter)) for length in picture.size)
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return scaled.crop((left, top, left + side, top + side))


@contextmanager
def _opened(path: Path) -> Generator[Image.Image, None, None]:
    """Open an image; whatever Pillow raises on a damaged or absurdly large one becomes a ``DataError``."""
    try:
        with warnings.catch_warnings():
            # A header that claims absurdly many pixels is an error here, not advice.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Pillow's other advice is about tags and animations, which do not touch the pixels.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path, formats=_FORMATS) as image:
                yield image
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(
            f"{path}: expected a PNG or JPEG image; got {error}. Repair it or move it away."
        ) from error
