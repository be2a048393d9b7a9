"""ONNX nodes that rebuild sparse weights from their codes when a runtime loads the file.

Only stock operators, and every shape is known from the file alone (no NonZero, Compress or Loop): so
ONNX Runtime folds the nodes into dense constants when it creates a session, and inference is that of the
dense file. Sums and scatters run in float32, which is what other runtimes fold too, and is exact below
2**24: longer arrays are decoded in pieces. Values are only ever copied, so they come out bit for bit.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from robustcompress.export import rice
from robustcompress.export.graph_writer import GraphWriter
from robustcompress.export.values import BITS, ValueType, is_kept

EXACT = 1 << 24
"""Up to here float32 counts without a gap."""

Codes: TypeAlias = npt.NDArray[Any]


class Decoder:
    """Writes decoders into one graph; they share constants."""

    def __init__(self, writer: GraphWriter, *, longest: int = EXACT) -> None:
        """Write with ``writer``; no piece is longer than ``longest`` values."""
        self._writer = writer
        self._longest = longest
        self._bits_of_bytes = ""

    def flat(self, codes: Codes, kind: ValueType = "float32") -> str:
        """Return the name of a float32 value ``[size]`` that will hold ``codes`` (+0.0 for -0.0).

        Args:
            codes: 1-D, as :class:`~robustcompress.export.values.Coded` stores them; float32 for float32.
            kind: How they are stored in the file.
        """
        starts = range(0, len(codes), self._longest)
        pieces = [self._piece(codes[start : start + self._longest], kind) for start in starts]
        return pieces[0] if len(pieces) == 1 else self._writer.node("Concat", *pieces, axis=0)

    def dense(self, codes: Codes, kind: ValueType) -> str:
        """Return the name of a float32 value that will hold all of ``codes``, of any shape."""
        write = self._writer
        if kind not in BITS or BITS[kind] == 8:
            return self._numbers(codes, kind)
        longer = self._numbers(codes.reshape(-1), kind)
        ends = (write.constant(np.array([end], dtype=np.int64)) for end in (0, codes.size))
        shape = write.constant(np.array(codes.shape, dtype=np.int64))
        return write.node("Reshape", write.node("Slice", longer, *ends), shape)

    def _numbers(self, codes: Codes, kind: ValueType) -> str:
        """Return float32 numbers, with a few more at the end where bits of 1-D codes are packed."""
        write = self._writer
        if kind == "float32":
            return write.constant(codes)
        if kind not in BITS or BITS[kind] == 8:
            return write.node("Cast", write.constant(codes), to=TensorProto.FLOAT)
        bits = BITS[kind]
        planes = [np.packbits((codes >> shift) & 1) for shift in range(bits - 1, -1, -1)]
        powers = 2.0 ** np.arange(bits - 1, -1, -1)
        powers[0] = -powers[0]  # two's complement
        return self._spelled(np.stack(planes), powers.astype(np.float32))

    def _piece(self, values: Codes, kind: ValueType) -> str:
        write = self._writer
        kept = is_kept(values)
        positions = np.flatnonzero(kept)
        if len(positions) == 0:
            return self._zeros(len(values))
        code = rice.encode(positions)
        # Row 0 is what a zero of the unary stream stands for: the weight 0.
        table = self._numbers(np.concatenate([np.zeros(1, dtype=values.dtype), values[positions]]), kind)
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
        return self._spelled(planes, (2.0 ** np.arange(len(planes) - 1, -1, -1)).astype(np.float32))

    def _spelled(self, planes: rice.Packed, powers: npt.NDArray[np.float32]) -> str:
        """Return float32: the sum of each column of bit planes, each plane worth its power."""
        write = self._writer
        return write.node("MatMul", write.constant(powers), self._unpacked(planes))

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
