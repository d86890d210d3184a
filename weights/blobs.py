"""Assembles atom blobs, laid out as `kernels.layout` says, from float32 matrices."""

import numpy as np
import numpy.typing as npt

from kernels.layout import (
    COLUMNS_PER_ATOM,
    TILE_ROWS,
    VOCAB_ROWS_PER_ATOM,
    Geometry,
    WeightFormat,
    matrix_bytes,
    round_up,
)
from kernels.tiles import pack_matrix

__all__ = [
    "column_blobs",
    "final_norm_blob",
    "head_group_blob",
    "largest_weight",
    "layer_norms_blob",
    "vocab_blobs",
]

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]

# Packing works on pieces that stay in the cache; its temporaries are several times as large.
_PACK_ITEMS = 1 << 18
_F16_MAX = 65504.0


def largest_weight(fmt: WeightFormat) -> float:
    """Return the largest magnitude a format can hold; scales of q8 and q4 are float16."""
    if fmt == WeightFormat.F32:
        return float(np.finfo(np.float32).max)
    return _F16_MAX * {WeightFormat.F16: 1, WeightFormat.Q8: 127, WeightFormat.Q4: 8}[fmt]


def _pack(w: F32Array, fmt: WeightFormat) -> U8Array:
    """Pack (n_rows, n_k) float32 piece by piece: whole row tiles lie one after another."""
    n_rows, n_k = w.shape
    step = max(1, _PACK_ITEMS // n_k // TILE_ROWS) * TILE_ROWS
    out = np.empty(matrix_bytes(n_rows, n_k, fmt), np.uint8)
    at = 0
    for first in range(0, n_rows, step):
        packed = pack_matrix(w[first : first + step], fmt)
        out[at : at + packed.size] = packed
        at += packed.size
    return out


def head_group_blob(g: Geometry, qkv: F32Array, o: F32Array, bias: F32Array | None) -> U8Array:
    """Return one head group: (head_group_bytes,) uint8.

    Args:
        g: shapes and format.
        qkv: (qkv_rows, D), q rows of the group, then k, then v.
        o: (D, o_columns), the group's columns of W_o.
        bias: (qkv_rows,) if the model has q, k, v biases.
    """
    blob = np.zeros(g.head_group_bytes, np.uint8)
    packed_qkv, packed_o = _pack(qkv, g.fmt), _pack(o, g.fmt)
    blob[: packed_qkv.size] = packed_qkv
    blob[g.o_offset_bytes : g.o_offset_bytes + packed_o.size] = packed_o
    if bias is not None:
        blob[g.bias_offset_bytes : g.bias_offset_bytes + bias.nbytes] = bias.view(np.uint8)
    return blob


def column_blobs(g: Geometry, gate: F32Array, up: F32Array, down: F32Array) -> U8Array:
    """Return neighbouring column atoms: (n_atoms, column_bytes) uint8.

    Args:
        g: shapes and format.
        gate: (n, D) rows of n columns; if n is no multiple of 32, the last atom is padded.
        up: (n, D).
        down: (D, n).
    """
    n, d = gate.shape
    n_atoms = -(-n // COLUMNS_PER_ATOM)
    pairs = np.zeros((2, n_atoms * COLUMNS_PER_ATOM, d), np.float32)
    pairs[0, :n], pairs[1, :n] = gate, up
    # [gate|up][block of 8][row] -> blocks of 8 gate rows and 8 up rows in turn.
    gate_up = pairs.reshape(2, -1, TILE_ROWS, d).transpose(1, 0, 2, 3).reshape(-1, d)
    padded_d = round_up(d, TILE_ROWS)
    stacked = np.zeros((n_atoms, padded_d, COLUMNS_PER_ATOM), np.float32)
    for atom in range(n_atoms):
        part = down[:, atom * COLUMNS_PER_ATOM : (atom + 1) * COLUMNS_PER_ATOM]
        stacked[atom, :d, : part.shape[1]] = part
    packed_gate_up = _pack(gate_up, g.fmt).reshape(n_atoms, -1)
    packed_down = _pack(stacked.reshape(-1, COLUMNS_PER_ATOM), g.fmt).reshape(n_atoms, -1)
    blobs = np.zeros((n_atoms, g.column_bytes), np.uint8)
    blobs[:, : packed_gate_up.shape[1]] = packed_gate_up
    blobs[:, g.down_offset_bytes : g.down_offset_bytes + packed_down.shape[1]] = packed_down
    return blobs


def vocab_blobs(g: Geometry, rows: F32Array) -> U8Array:
    """Return neighbouring vocab atoms: (n_atoms, vocab_bytes) uint8.

    Args:
        g: shapes and format.
        rows: (n, D) token rows; if n is no multiple of 128, the last atom is padded.
    """
    n, d = rows.shape
    n_atoms = -(-n // VOCAB_ROWS_PER_ATOM)
    if n % VOCAB_ROWS_PER_ATOM:
        padded = np.zeros((n_atoms * VOCAB_ROWS_PER_ATOM, d), np.float32)
        padded[:n] = rows
        rows = padded
    packed = _pack(rows, g.fmt).reshape(n_atoms, -1)
    blobs = np.zeros((n_atoms, g.vocab_bytes), np.uint8)
    blobs[:, : packed.shape[1]] = packed
    return blobs


def layer_norms_blob(g: Geometry, norms: list[F32Array]) -> U8Array:
    """Return a layer's norms: (layer_norms_bytes,) uint8.

    `norms` is attn_norm (D,), mlp_norm (D,), then q_norm and k_norm (d,) if the model has them.
    """
    return _floats(np.concatenate(norms), g.layer_norms_bytes)


def final_norm_blob(g: Geometry, norm: F32Array) -> U8Array:
    """Return the final norm (D,) as a blob: (final_norm_bytes,) uint8."""
    return _floats(norm, g.final_norm_bytes)


def _floats(values: F32Array, n_bytes: int) -> U8Array:
    blob = np.zeros(n_bytes, np.uint8)
    blob[: values.nbytes] = np.ascontiguousarray(values).view(np.uint8)
    return blob
