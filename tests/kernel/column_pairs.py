"""Two column atoms in a store, a row, and how both ways multiply them: for several tests."""

import numpy as np
import numpy.typing as npt
from numba import njit

from kernels.column_pair import ColumnPair, Onward, activate_pair, add_down_pair
from kernels.formats import BLOCK_FLOATS, kept_floats, weight_dtype
from kernels.layout import TILE_BYTES, WeightFormat
from kernels.matvec import matvec
from kernels.mlp import gate_up
from kernels.quantise import quantise
from kernels.spans import Matrix, Rows, Span
from kernels.tiles import pack_matrix
from tests.kernel_models import callable_from_python

F32 = npt.NDArray[np.float32]
FORMATS = [WeightFormat.Q8, WeightFormat.Q4]
# Even and odd numbers of row tiles, whole ones and not; more than one tile of inputs.
SIZES = [8, 20, 40, 48, 109]


class TwoAtoms:
    """Two atoms, the second one in front of the first, a row, and sums to which they are added."""

    def __init__(self, fmt: WeightFormat, hidden: int) -> None:
        rng = np.random.default_rng(hidden)
        self.fmt, self.hidden, self.k_tiles = fmt, hidden, -(-hidden // 32)
        shapes = [(64, hidden), (hidden, 32)]
        numbers = rng.standard_normal((2, 96 * hidden)).astype(np.float32)
        self.matrices = [
            [pack_matrix(part.reshape(shape), fmt) for part, shape in zip(
                np.split(one, [64 * hidden]), shapes, strict=True)]
            for one in numbers
        ]  # fmt: skip
        (gate_up_0, down_0), (gate_up_1, down_1) = self.matrices
        gap = np.full(64, 255, np.uint8)  # as numbers nan or huge: nobody should read it
        store = np.concatenate([gate_up_1, down_1, gap, gate_up_0, down_0])
        self.w = store.view(weight_dtype(fmt, True))
        self.first = (store.size - gate_up_0.size - down_0.size) // self.w.itemsize
        self.down_skip = gate_up_0.size // self.w.itemsize
        self.tile_size = TILE_BYTES[fmt] // self.w.itemsize
        x = np.zeros(32 * self.k_tiles, np.float32)
        x[:hidden] = rng.standard_normal(hidden)
        self.h = np.zeros(BLOCK_FLOATS * self.k_tiles, np.float32)
        callable_from_python(quantise)(Span(x, 0), self.k_tiles, Span(self.h, 0))
        self.sums = rng.standard_normal(2 * hidden).astype(np.float32)

    def pair(self, w: npt.NDArray[np.int64], n_atoms: int) -> ColumnPair:
        apart = -self.first if n_atoms > 1 else 0
        return ColumnPair(
            w, self.first, apart, n_atoms, self.tile_size, self.k_tiles, self.down_skip, self.hidden
        )

    def one_by_one(self, n_atoms: int, total_step: int) -> tuple[F32, F32]:
        """Return activations and sums by `gate_up` and `matvec`."""
        q, sums = np.zeros(n_atoms * BLOCK_FLOATS, np.float32), self.sums.copy()
        kept = Span(np.zeros(kept_floats(1), np.float32), 0)
        for i, first in enumerate((self.first, 0)[:n_atoms]):
            act, buffer = np.zeros(32, np.float32), Rows(np.zeros(64, np.float32), 0, 64)
            m = Matrix(self.w, first, self.tile_size, self.k_tiles, 64, -1, 0)
            h = Rows(self.h, 0, self.h.size)
            callable_from_python(gate_up)(m, 0, 4, h, Rows(act, 0, 32), buffer, 1, kept)
            to = Span(q, i * BLOCK_FLOATS)
            callable_from_python(quantise)(Span(act, 0), 1, to)
            m = Matrix(self.w, first + self.down_skip, self.tile_size, 1, self.hidden, -1, 0)
            acts, out = Rows(q, to.first, BLOCK_FLOATS), Rows(sums, i * total_step, self.hidden)
            callable_from_python(matvec)(m, 0, -(-self.hidden // 8), acts, out, 1, kept)
        return q, sums


def _run(
    p: ColumnPair, h: Span, q: Span, total: Span, total_step: int, onward: Onward, scratch: Span
) -> None:
    activate_pair(p, h, scratch, q)
    add_down_pair(p, q, total, total_step, onward, scratch)


run_pair = njit(nogil=True)(_run)
