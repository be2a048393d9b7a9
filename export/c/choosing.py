"""Choose for each layer between its weights that are left and all of its weights."""

from robustcompress.export.c.network import Convolution, Linear
from robustcompress.export.c.weights import kept

# Cycles of a core with two loads and two multiply-adds a cycle, as measured on one with vectors of eight:
# a sparse tap loads every vector that it multiplies, often across two lines of the cache.
_SPARSE_VECTOR = 0.80
_SPARSE_TAP = 1.3
_DENSE_VECTOR = 0.60
_SPARSE_FEATURE = 1.0
_DENSE_FEATURE = 0.10


def sparse_cycles(layer: Convolution, positions: int, *, lanes: int = 8) -> float:
    """Return what sums over the weights that are left cost, in cycles, roughly."""
    vectors = -(-positions // lanes)
    tiles = -(-vectors // 12)
    return float(kept(layer) * (vectors * _SPARSE_VECTOR + tiles * _SPARSE_TAP))


def dense_cycles(layer: Convolution, positions: int, *, lanes: int = 8) -> float:
    """Return what sums over all weights cost, in cycles, roughly."""
    outputs = len(layer.weight) // layer.groups
    vectors = -(-positions // lanes)
    fours = -(-outputs // 4) * 4 * layer.groups
    return float(fours * layer.weight[0].size * max(vectors, 2) * _DENSE_VECTOR)


def is_dense(layer: Convolution | Linear, positions: int = 1) -> bool:
    """Return whether all weights are multiplied rather than those that are left.

    Args:
        layer: With its weights.
        positions: Of one output plane; 1 for features.
    """
    if isinstance(layer, Linear):
        return kept(layer) * _SPARSE_FEATURE > layer.weight.size * _DENSE_FEATURE
    return sparse_cycles(layer, positions) > dense_cycles(layer, positions)
