"""Windows of an image, and the bumps that the L2 Square Attack puts into them.

Shapes: B batch, C channels, H height, W width, N rows of tiles, M columns of tiles.
"""

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

_TILES = 5


class Window(NamedTuple):
    """A rectangle of pixels: the place of its first row and column, and its size."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def at(cls, place: tuple[float, float], size: tuple[int, int], image_size: tuple[int, int]) -> Self:
        """Return the window that two uniform numbers in [0, 1) choose; every place is equally likely."""
        top, left = (
            int(number * (whole - side + 1))
            for number, side, whole in zip(place, size, image_size, strict=True)
        )
        return cls(top, left, *size)

    def of(self, images_BCHW: Tensor) -> Tensor:
        """Return the view of this window in every image."""
        return images_BCHW[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def meet(self, other: Self) -> "Window":
        """Return what both windows cover; a side of it may be 0."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.height, other.top + other.height)
        right = min(self.left + self.width, other.left + other.width)
        return Window(top, left, max(bottom - top, 0), max(right - left, 0))


def window_size(
    share: float, image_size: tuple[int, int], *, least: int = 1, odd: bool = False
) -> tuple[int, int]:
    """Return height and width of a square that covers ``share`` of an image.

    Where the image is too narrow for the square, it becomes a rectangle that covers as much.

    Args:
        share: Of the pixels, above 0 and at most 1.
        image_size: Height and width of the image.
        least: Smallest side, if the image is as large.
        odd: Whether to make sides odd, upwards, if the image is as large.
    """
    short, long = sorted(image_size)
    pixels = share * short * long
    ideal = math.sqrt(pixels)

    def side(length: float, limit: int) -> int:
        whole = max(round(length), least)
        return min(whole + 1 if odd and whole % 2 == 0 else whole, limit)

    shorter, longer = side(ideal, short), side(ideal if ideal <= short else pixels / short, long)
    return (shorter, longer) if image_size[0] <= image_size[1] else (longer, shorter)


def two_bumps(height: int, width: int, *, side_by_side: bool) -> Tensor:
    """Return a hill and a valley that share a window, together of length 1; float64 ``[height, width]``.

    A single row or column can only be cut one way; a single pixel is a hill alone.

    Source:
        Andriushchenko et al. 2019, https://arxiv.org/abs/1912.00049, the L2 attack.
    """
    if height == width == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if height == 1 or (side_by_side and width > 1):
        return two_bumps(width, height, side_by_side=False).T
    pair = torch.cat([_bump(height // 2, width), -_bump(height - height // 2, width)])
    return functional.normalize(pair.flatten(), dim=0).view_as(pair)


def _bump(height: int, width: int) -> Tensor:
    """Return a hill of length 1: at distance m from its middle, the sum of ``1 / (k + 1)**2`` from k = m on.

    The distance is the longer one of both axes'; k goes to half the longer side.
    """
    rows_H1 = (torch.arange(height)[:, None] - height // 2).abs()
    columns_W = (torch.arange(width) - width // 2).abs()
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** 2
    hill_HW = terms.flip(0).cumsum(0).flip(0)[torch.maximum(rows_H1, columns_W)]
    return functional.normalize(hill_HW.flatten(), dim=0).view_as(hill_HW)


def tile_counts(image_size: tuple[int, int]) -> tuple[int, int]:
    """Return how many tiles, each a fifth of the image's side and at least a pixel, fit both ways."""
    height, width = image_size
    return height // _tile_side(height), width // _tile_side(width)


def bumpy_tiles(image_size: tuple[int, int], signs_BCNM: Tensor, side_by_side: list[list[bool]]) -> Tensor:
    """Return images paved with two bumps in each tile; ``[batch, channels, *image_size]``, 0 at the edges.

    Args:
        image_size: Height and width.
        signs_BCNM: float, 1 or -1 for each tile of each channel.
        side_by_side: How to cut each tile.
    """
    height, width = _tile_side(image_size[0]), _tile_side(image_size[1])
    pattern_NhMw = torch.cat(
        [torch.cat([two_bumps(height, width, side_by_side=cut) for cut in row], 1) for row in side_by_side]
    )
    signs = signs_BCNM.repeat_interleave(height, 2).repeat_interleave(width, 3)
    paved = signs * pattern_NhMw.to(signs)
    images = signs.new_zeros(*signs.shape[:2], *image_size)
    top, left = ((whole - part) // 2 for whole, part in zip(image_size, paved.shape[2:], strict=True))
    Window(top, left, paved.shape[2], paved.shape[3]).of(images).copy_(paved)
    return images


def _tile_side(side: int) -> int:
    return max(side // _TILES, 1)
