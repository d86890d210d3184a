"""Two column atoms at once against NumPy, and bit by bit against one after the other."""

import numpy as np
import numpy.typing as npt
import pytest

from kernels.column_pair import PAIR_FLOATS, Onward
from kernels.formats import BLOCK_FLOATS
from kernels.layout import WeightFormat
from kernels.spans import Span
from kernels.tiles import unpack_matrix
from tests import naive
from tests.kernel.column_pairs import F32, FORMATS, SIZES, TwoAtoms, run_pair


def dequantised(q: F32) -> npt.NDArray[np.float64]:
    blocks = q.reshape(-1, BLOCK_FLOATS)
    numbers = np.ascontiguousarray(blocks[:, :8]).view(np.int8).astype(np.float64)
    return (numbers * blocks[:, 8:9].astype(np.float64)).reshape(-1)


@pytest.mark.parametrize(("n_atoms", "apart"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("hidden", SIZES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_column_pair(fmt: WeightFormat, hidden: int, n_atoms: int, apart: bool) -> None:
    case = TwoAtoms(fmt, hidden)
    total_step = hidden if apart else 0
    q, sums = np.zeros(n_atoms * BLOCK_FLOATS, np.float32), case.sums.copy()
    scratch = Span(np.full(PAIR_FLOATS, np.nan, np.float32), 0)
    run_pair(case.pair(case.w, n_atoms), Span(case.h, 0), Span(q, 0), Span(sums, 0), total_step,
             Onward(-1, 0), scratch)  # fmt: skip
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
    case, found = TwoAtoms(WeightFormat.Q4, 40), []
    for onward in (Onward(-1, 0), Onward(1 << 40, -(1 << 39))):
        q, sums = np.zeros(2 * BLOCK_FLOATS, np.float32), case.sums.copy()
        scratch = Span(np.zeros(PAIR_FLOATS, np.float32), 0)
        run_pair(case.pair(case.w, 2), Span(case.h, 0), Span(q, 0), Span(sums, 0), 0, onward,
                 scratch)  # fmt: skip
        found.append(sums)
    np.testing.assert_array_equal(*found)
