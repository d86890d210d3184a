"""Two column atoms at once against NumPy, and bit by bit against one after the other."""

import numpy as np
import numpy.typing as npt
import pytest
from numba import njit

from kernels.column_pair import ColumnPair, Onward, activate_pair, add_down_pair
from kernels.formats import BLOCK_FLOATS, kept_floats, weight_dtype
from kernels.layout import TILE_BYTES, WeightFormat
from kernels.matvec import matvec
from kernels.mlp import gate_up
from kernels.quantise import quantise
from kernels.spans import Matrix, Rows, Span
from kernels.tiles import pack_matrix, unpack_matrix
from tests import naive
from tests.kernel_models import callable_from_python

F32 = npt.NDArray[np.float32]
FORMATS = [WeightFormat.Q8, WeightFormat.Q4]
# Even and odd numbers of row tiles, whole ones and not; more than one tile of inputs.
SIZES = [8, 20, 40, 48, 109]


class Case:
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


def _run(p: ColumnPair, h: Span, q: Span, total: Span, total_step: int, scratch: Span) -> None:
    activate_pair(p, h, scratch, q)
    add_down_pair(p, q, total, total_step, Onward(-1, 0), scratch)


run_pair = njit(nogil=True)(_run)


def dequantised(q: F32) -> npt.NDArray[np.float64]:
    blocks = q.reshape(-1, BLOCK_FLOATS)
    numbers = np.ascontiguousarray(blocks[:, :8]).view(np.int8).astype(np.float64)
    return (numbers * blocks[:, 8:9].astype(np.float64)).reshape(-1)


@pytest.mark.parametrize(("n_atoms", "apart"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("hidden", SIZES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_column_pair(fmt: WeightFormat, hidden: int, n_atoms: int, apart: bool) -> None:
    case = Case(fmt, hidden)
    total_step = hidden if apart else 0
    q, sums = np.zeros(n_atoms * BLOCK_FLOATS, np.float32), case.sums.copy()
    scratch = Span(np.full(256, np.nan, np.float32), 0)
    run_pair(case.pair(case.w, n_atoms), Span(case.h, 0), Span(q, 0), Span(sums, 0), total_step,
             scratch)  # fmt: skip
    expected_q, expected_sums = case.one_by_one(n_atoms, total_step)
    np.testing.assert_array_equal(q.view(np.uint32), expected_q.view(np.uint32))
    np.testing.assert_array_equal(sums, expected_sums)

    # By the equations, from what the bytes say.
    h, wanted = dequantised(case.h)[:hidden], case.sums.astype(np.float64)
    for i in range(n_atoms):
        packed_gate_up, packed_down = case.matrices[i]
        both = unpack_matrix(packed_gate_up, 64, hidden, fmt).astype(np.float64)
        gate, up = both.reshape(4, 2, 8, hidden).transpose(1, 0, 2, 3).reshape(2, 32, hidden)
        act = naive.silu(gate @ h) * (up @ h)
        rounded = dequantised(q[i * BLOCK_FLOATS : (i + 1) * BLOCK_FLOATS])
        # Half a unit of the byte, and what float32 makes of it.
        np.testing.assert_allclose(rounded, act, atol=0.51 * np.abs(act).max() / 127)
        down = unpack_matrix(packed_down, hidden, 32, fmt).astype(np.float64)
        wanted[i * total_step : i * total_step + hidden] += down @ rounded
    np.testing.assert_allclose(sums, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_onward_is_only_asked_for() -> None:
    """What is read next may be anywhere, also where nothing is: no bit depends on it."""
    case, found = Case(WeightFormat.Q4, 40), []
    for onward in (Onward(-1, 0), Onward(1 << 40, -(1 << 39))):

        def run(p: ColumnPair, q: Span, total: Span, scratch: Span, onward: Onward) -> None:
            add_down_pair(p, q, total, 0, onward, scratch)

        q = case.one_by_one(2, 0)[0]
        sums, scratch = case.sums.copy(), Span(np.zeros(256, np.float32), 0)
        njit(run)(case.pair(case.w, 2), Span(q, 0), Span(sums, 0), scratch, onward)
        found.append(sums)
    np.testing.assert_array_equal(*found)
