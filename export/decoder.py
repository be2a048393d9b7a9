"""ONNX nodes that rebuild sparse weights from their codes when a runtime loads the file.

Only stock operators, and every shape is known from the file alone (no NonZero, Compress or Loop): so
ONNX Runtime folds the nodes into dense constants when it creates a session, and inference is that of the
dense file. Sums and scatters run in float32, which is what other runtimes fold too, and is exact below
2**24: longer arrays are decoded in pieces. Values are only ever copied, so they come out bit for bit.
"""

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from robustcompress.export import rice
from robustcompress.export.graph_writer import GraphWriter
from robustcompress.export.zeros import is_nonzero

EXACT = 1 << 24
"""Up to here float32 counts without a gap."""

Floats = npt.NDArray[np.float32]


class Decoder:
    """Writes decoders into one graph; they share constants."""

    def __init__(self, writer: GraphWriter, *, longest: int = EXACT) -> None:
        """Write with ``writer``; no piece is longer than ``longest`` values."""
        self._writer = writer
        self._longest = longest
        self._bits_of_bytes = ""

    def flat(self, values: Floats) -> str:
        """Return the name of a float32 value ``[size]`` that will hold ``values`` (1-D; +0.0 for -0.0)."""
        starts = range(0, len(values), self._longest)
        pieces = [self._piece(values[start : start + self._longest]) for start in starts]
        return pieces[0] if len(pieces) == 1 else self._writer.node("Concat", *pieces, axis=0)

    def _piece(self, values: Floats) -> str:
        write = self._writer
        kept = is_nonzero(values)
        positions = np.flatnonzero(kept)
        if len(positions) == 0:
            return self._zeros(len(values))
        code = rice.encode(positions)
        # Row 0 is what a zero of the unary stream stands for: the weight 0.
        table = write.constant(np.concatenate([np.zeros(1, dtype=np.float32), values[positions]]))
        mask = np.packbits(kept)
        if mask.nbytes <= code.size_bytes:
            return write.node("Gather", table, self._ranks(mask, len(values)))
        ranks = self._ranks(code.unary, code.unary_bits)
        one = write.constant(np.array(1, dtype=np.float32))
        advances = write.node("Add", write.node("Gather", self._low_bits(code.planes), ranks), one)
        reached = write.node("Sub", self._running_sum(advances), one)
        where = write.node("Cast", reached, to=TensorProto.INT32)
        updates = write.node("Gather", table, ranks)
        return write.node("ScatterElements", self._zeros(len(values)), where, updates)

    def _zeros(self, size: int) -> str:
        return self._writer.node("ConstantOfShape", self._writer.constant(np.array([size], dtype=np.int64)))

    def _ranks(self, packed: rice.Packed, bits: int) -> str:
        """Return int32 ``[bits]``: for a one, how many ones there are up to it; for a zero, 0."""
        write = self._writer
        ones = self._unpacked(packed)
        if bits % 8:
            ends = (write.constant(np.array([end], dtype=np.int64)) for end in (0, bits))
            ones = write.node("Slice", ones, *ends)
        ranks = write.node("Mul", self._running_sum(ones), ones)
        return write.node("Cast", ranks, to=TensorProto.INT32)

    def _low_bits(self, planes: rice.Packed) -> str:
        """Return float32: the number that each column of bit planes spells."""
        write = self._writer
        count = len(planes)
        powers = write.constant((2.0 ** np.arange(count - 1, -1, -1)).astype(np.float32))
        return write.node("MatMul", powers, self._unpacked(planes))

    def _running_sum(self, source: str) -> str:
        axis = self._writer.constant(np.array(0, dtype=np.int32))
        return self._writer.node("CumSum", source, axis)

    def _unpacked(self, packed: rice.Packed) -> str:
        """Return float32 zeros and ones ``[..., 8 * bytes]``."""
        write = self._writer
        shape = write.constant(np.array([*packed.shape[:-1], -1], dtype=np.int64))
        bytes_ = write.node("Cast", write.constant(packed), to=TensorProto.INT32)
        return write.node("Reshape", write.node("Gather", self._byte_table(), bytes_), shape)

    def _byte_table(self) -> str:
        """Return float32 ``[256, 8]``, the bits of every byte; made once, from a handful of numbers."""
        if not self._bits_of_bytes:
            write = self._writer
            zero, two, many = (write.constant(np.array(number, dtype=np.int32)) for number in (0, 2, 256))
            step = write.constant(np.array(1, dtype=np.int32))
            column = write.constant(np.array([-1, 1], dtype=np.int64))
            every = write.node("Reshape", write.node("Range", zero, many, step), column)
            halves = write.node("Div", every, write.constant(1 << np.arange(7, -1, -1, dtype=np.int32)))
            bits = write.node("Mod", halves, two)
            self._bits_of_bytes = write.node("Cast", bits, to=TensorProto.FLOAT)
        return self._bits_of_bytes
