"""How large a member's partial sums can be at all, from the weights alone. NumPy, used rarely.

With W~ = W diag(norm weight), y = x / rms(x), so |y|_2 <= sqrt(D), and Cauchy-Schwarz:

    attention   |v_j|  <= sqrt(D) |W~v_j|_2 + |b_j|         for every position of the context,
                |o_j|  <= |v_j|                             attention weights are >= 0, sum 1
                |p_i|  <= sum_j |Wo_ij| |v_j|               over the member's heads
    MLP         |g_j|, |u_j| <= sqrt(D) |W~_j|_2,           |silu(g)| <= |g|
                |p_i|  <= sum_j |Wdown_ij| |g_j| |u_j|      over the member's columns

A partial sum beyond its bound has not been computed from these weights, whatever the text.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from kernels.layout import COLUMNS_PER_ATOM, TILE_ROWS, Geometry
from kernels.tiles import unpack_matrix

__all__ = ["attention_bound", "mlp_bound"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

# Activations of 8 bits may be longer than what they stand for: a block of 32 is off by at most
# max / 254 a value, which is sqrt(32) / 254 = 2.3 % of its length. That enters the MLP three times;
# float32 and float16 add far less.
_ROUNDING = 1.1


def attention_bound(g: Geometry, norms: U8, groups: Iterable[U8]) -> float:
    """Return the largest magnitude of a partial sum of some head groups of a layer.

    Args:
        g: shapes and format.
        norms: the layer's norms, (layer_norms_bytes,) uint8.
        groups: blobs of the head groups, (head_group_bytes,) uint8 each.
    """
    norm = norms.view(np.float32)[: g.hidden_size]
    bound = np.zeros(g.hidden_size)
    for blob in groups:
        v = unpack_matrix(blob, g.qkv_rows, g.hidden_size, g.fmt)[-g.head_dim :]
        largest = _largest(v, norm)
        if g.qkv_bias:
            bias = blob[g.bias_offset_bytes :].view(np.float32)[: g.qkv_rows]
            largest += np.abs(bias[-g.head_dim :])
        o = unpack_matrix(blob[g.o_offset_bytes :], g.hidden_size, g.o_columns, g.fmt)
        bound += np.abs(o) @ np.tile(largest, g.heads_per_group)
    return _ROUNDING * float(bound.max())


def mlp_bound(g: Geometry, norms: U8, columns: Iterable[U8]) -> float:
    """Return the largest magnitude of a partial sum of some column atoms of a layer.

    Args:
        g: shapes and format.
        norms: the layer's norms, (layer_norms_bytes,) uint8.
        columns: blobs of the column atoms, (column_bytes,) uint8 each.
    """
    norm = norms.view(np.float32)[g.hidden_size : 2 * g.hidden_size]
    bound = np.zeros(g.hidden_size)
    for blob in columns:
        gate_up = unpack_matrix(blob, 2 * COLUMNS_PER_ATOM, g.hidden_size, g.fmt)
        # Blocks of 8 gate rows and 8 up rows take turns.
        pairs = _largest(gate_up, norm).reshape(-1, 2, TILE_ROWS)
        products = (pairs[:, 0] * pairs[:, 1]).reshape(-1)
        down = unpack_matrix(blob[g.down_offset_bytes :], g.hidden_size, COLUMNS_PER_ATOM, g.fmt)
        bound += np.abs(down) @ products
    return _ROUNDING * float(bound.max())


def _largest(rows: F32, norm: F32) -> F64:
    """Return the largest |row . (y * norm)| of each row, (n,), over all y with |y|_2 <= sqrt(D)."""
    scaled = rows.astype(np.float64) * norm
    lengths: F64 = np.sqrt(norm.size * np.square(scaled).sum(axis=1))
    return lengths
