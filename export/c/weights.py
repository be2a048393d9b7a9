"""The weights of a layer as the C file stores them: taps of each output, or blocks of four outputs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robustcompress.export.c.network import Convolution, Floats, Linear

_CACHE_BYTES = 28 * 1024
_LEAST_TAPS = 24
"""Of a block and output: with fewer, saving and loading sums costs more than the nearer cache saves."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """Weights that are not zero, block after block of input channels, output after output.

    Attributes:
        offsets: int32 ``[taps]``, from an output's position.
        weights: float32 ``[taps]``.
        starts: uint32 ``[blocks * outputs + 1]``, of each block's and output's taps.
        blocks: Of input channels.
        rows: int32 ``[taps]``: output that a tap belongs to.
    """

    offsets: npt.NDArray[np.int32]
    weights: Floats
    starts: npt.NDArray[np.uint32]
    blocks: int
    rows: npt.NDArray[np.int32]


def kept(layer: Convolution | Linear) -> int:
    """Return how many weights are not zero."""
    return int(np.count_nonzero(layer.weight))


def sparse_convolution(layer: Convolution, distances: npt.NDArray[np.int64], *, tile_bytes: int) -> Sparse:
    """Return the taps of a convolution.

    Args:
        layer: Whose weights are stored.
        distances: int64 ``[channels, taps]``, of the whole source.
        tile_bytes: Of one input channel that a tile of outputs reads; input channels are cut into blocks
            whose tiles fit the nearest cache, where outputs have taps enough.
    """
    outputs, inputs = layer.weight.shape[:2]
    flat = layer.weight.reshape(outputs, inputs, -1)
    row, channel, place = np.nonzero(flat)
    values = flat[row, channel, place]
    channel_of = channel + row // (outputs // layer.groups) * inputs
    each = max(8, _CACHE_BYTES // max(tile_bytes, 1))
    blocks = -(-inputs // each) if layer.groups == 1 else 1
    while blocks > 1 and len(values) / outputs / blocks < _LEAST_TAPS:
        blocks -= 1
    block = channel // -(-inputs // blocks)
    order = np.lexsort((place, channel, row, block))
    counts = np.bincount(block * outputs + row, minlength=blocks * outputs)
    return Sparse(
        offsets=distances[channel_of, place][order].astype(np.int32),
        weights=values[order],
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32),
        blocks=blocks,
        rows=row[order].astype(np.int32),
    )


def sparse_linear(layer: Linear) -> Sparse:
    """Return the taps of a linear layer."""
    row, column = np.nonzero(layer.weight)
    counts = np.bincount(row, minlength=len(layer.weight))
    return Sparse(
        offsets=column.astype(np.int32),
        weights=layer.weight[row, column],
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32),
        blocks=1,
        rows=row.astype(np.int32),
    )


def packed(layer: Convolution) -> Floats:
    """Return all weights: for each four outputs of a group the four of each tap beside each other.

    Missing ones of a group's last four are zero.
    """
    outputs = len(layer.weight) // layer.groups
    flat = layer.weight.reshape(layer.groups, outputs, -1)
    padding = np.zeros((layer.groups, -outputs % 4, flat.shape[2]), np.float32)
    fours = np.concatenate([flat, padding], axis=1).reshape(-1, 4, flat.shape[2])
    return np.ascontiguousarray(fours.transpose(0, 2, 1))
