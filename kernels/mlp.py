"""SwiGLU over column atoms.

    act[row, c] = silu(gate[c] . h[row]) * (up[c] . h[row])          silu(z) = z / (1 + exp(-z))
    out[row]   += sum over c of down[:, c] * act[row, c]             (the product is `matvec`)

A column atom's gate_up matrix alternates 8 gate rows and 8 up rows, so that one pair of row tiles
gives 8 finished activations.
"""

from kernels.jit import inner
from kernels.matvec import matvec
from kernels.simd import load, scale, store, zero
from kernels.simd_exp import silu8
from kernels.spans import Matrix, Rows, Span, row_of

__all__ = ["gate_up", "swiglu8"]


@inner
def gate_up(
    m: Matrix, first_pair: int, stop_pair: int, h: Rows, act: Rows, buffer: Rows, n_rows: int,
    kept: Span,
) -> None:  # fmt: skip
    """Write activations 8 * first_pair .. 8 * stop_pair of one column atom for every row.

    Args:
        m: the atom's gate_up matrix (64, D).
        first_pair: first pair of row tiles, 0 to 3.
        stop_pair: one past the last pair.
        h: normalised rows (n_rows, D), zero-padded to whole k tiles.
        act: written; a row starts at the atom's first activation.
        buffer: this thread's scratch, (n_rows, 64).
        n_rows: rows.
        kept: this thread's scratch for `matvec`.
    """
    width = 16 * (stop_pair - first_pair)
    for row in range(n_rows):
        for i in range(0, width, 8):
            store(buffer.values, buffer.first + row * buffer.stride + i, zero())
    target = Rows(buffer.values, buffer.first - 16 * first_pair, buffer.stride)
    matvec(m, 2 * first_pair, 2 * stop_pair, h, target, n_rows, kept)
    for row in range(n_rows):
        for pair in range(first_pair, stop_pair):
            swiglu8(row_of(buffer, row, 16 * (pair - first_pair)), row_of(act, row, 8 * pair))


@inner
def swiglu8(gate_up: Span, act: Span) -> None:
    """Write 8 activations of 8 gates and the 8 values behind these."""
    gate = load(gate_up.values, gate_up.first)
    up = load(gate_up.values, gate_up.first + 8)
    store(act.values, act.first, scale(silu8(gate), up))
