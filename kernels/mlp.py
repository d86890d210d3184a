"""SwiGLU over column atoms.

    act[row, c] = silu(gate[c] . h[row]) * (up[c] . h[row])          silu(z) = z / (1 + exp(-z))
    out[row]   += sum over c of down[:, c] * act[row, c]             (the product is `matvec`)

A column atom's gate_up matrix alternates 8 gate rows and 8 up rows, so that one pair of row tiles
gives 8 finished activations.
"""

import numpy as np

from kernels.elementary import silu
from kernels.jit import merged
from kernels.matvec import matvec
from kernels.spans import Matrix, Rows

__all__ = ["gate_up"]


@merged
def gate_up(
    m: Matrix, first_pair: int, stop_pair: int, h: Rows, act: Rows, buffer: Rows, n_rows: int
) -> None:
    """Write activations 8 * first_pair .. 8 * stop_pair of one column atom for every row.

    Args:
        m: the atom's gate_up matrix (64, D).
        first_pair: first pair of row tiles, 0 to 3.
        stop_pair: one past the last pair.
        h: normalised rows (n_rows, D), zero-padded to whole k tiles.
        act: written; a row starts at the atom's first activation.
        buffer: this thread's scratch, (n_rows, 16).
        n_rows: rows.
    """
    for pair in range(first_pair, stop_pair):
        for row in range(n_rows):
            for i in range(16):
                buffer.values[buffer.first + row * buffer.stride + i] = np.float32(0.0)
        target = Rows(buffer.values, buffer.first - 16 * pair, buffer.stride)
        matvec(m, 2 * pair, 2 * pair + 2, h, target, n_rows)
        for row in range(n_rows):
            gate = buffer.first + row * buffer.stride
            to = act.first + row * act.stride + 8 * pair
            for i in range(8):
                g = buffer.values[gate + i]
                act.values[to + i] = np.float32(silu(g) * buffer.values[gate + 8 + i])
