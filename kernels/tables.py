"""The int64 table that tells the phases what a member holds and where scratch lies.

The first N_FIXED entries have the names below; lists follow, and a list's entry says where it
starts. Offsets into weights are elements of the weight dtype or float32 elements, never bytes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.aligned import aligned_zeros
from kernels.formats import BLOCK_FLOATS, MOST_HEADS, MOST_SUMS, kept_floats
from kernels.layout import ALIGN_BYTES, COLUMNS_PER_ATOM, TILE_BYTES, TILE_K, Geometry, round_up

__all__ = ["MemberAtoms", "build_tables"]

I64Array = npt.NDArray[np.int64]
F32Array = npt.NDArray[np.float32]

(
    # shapes
    HIDDEN, HEAD_DIM, HEADS_PER_GROUP, QKV_ROWS, O_COLUMNS, QKV_BIAS, QK_NORM,
    # weights: elements per tile, tiles per row tile, skips from a blob's start
    TILE_SIZE, K_TILES, O_K_TILES, O_SKIP, DOWN_SKIP,
    # lists: per layer first local group and column (n_layers + 1 entries), offsets
    GROUP_BOUNDS, GROUPS, BIASES, COLUMN_BOUNDS, COLUMNS, NORMS,
    N_VOCAB, VOCAB, VOCAB_ROWS, FINAL_NORM,
    # the row table that `begin` fills: max_rows entries each
    SLOTS, POSITIONS,
    # scratch: first element, and elements per row where they are not obvious
    TURNS, NORMED, NORMED_STRIDE, QKV, QKV_STRIDE, MIXED, MIXED_STRIDE, ACT, ACT_STRIDE,
    GATE_UP, GATE_UP_STRIDE, KEPT, KEPT_STRIDE, SCORES, SCORES_STRIDE, PARTIAL,
    # quantised rows of NORMED, MIXED and ACT
    NORMED_Q, NORMED_Q_STRIDE, MIXED_Q, MIXED_Q_STRIDE, ACT_Q, ACT_Q_STRIDE,
    # sums over parts of the columns, or over one part for all rows
    SUMS,
    N_FIXED,
) = range(48)  # fmt: skip

EPS = 0  # element of scratch that holds norm_eps


@dataclass(frozen=True)
class MemberAtoms:
    """Which atoms a member holds and where their blobs start in its store.

    Attributes:
        layers: global layer numbers of the member's stage, rising.
        head_groups: per layer, byte offsets of its head-group blobs, int64; may be empty.
        columns: per layer, byte offsets of its column blobs, int64; may be empty.
        norms: (n_layers,) byte offset of each layer's norms blob, int64.
        vocab: byte offsets of the vocab blobs, int64; may be empty.
        vocab_first_rows: first token id of each vocab blob, int64.
        vocab_n_rows: real rows of each vocab blob, int64.
        final_norm: byte offset of the final norm, -1 for a member without vocab.
    """

    layers: tuple[int, ...]
    head_groups: tuple[I64Array, ...]
    columns: tuple[I64Array, ...]
    norms: I64Array
    vocab: I64Array
    vocab_first_rows: I64Array
    vocab_n_rows: I64Array
    final_norm: int

    @property
    def n_local_groups(self) -> int:
        """(layer, group) pairs of the member: the page table's second dimension."""
        return sum(len(groups) for groups in self.head_groups)

    @property
    def n_local_rows(self) -> int:
        """Vocabulary rows of the member: the columns of its logits."""
        return int(self.vocab_n_rows.sum())


def build_tables(
    geometry: Geometry,
    atoms: MemberAtoms,
    max_rows: int,
    context_tokens: int,
    n_threads: int,
    weight_bytes: int,
) -> tuple[I64Array, F32Array]:
    """Return the table and the zeroed scratch of a member; arguments are validated already.

    `weight_bytes` is the size of the elements as which kernels see the store.
    """
    fixed = np.zeros(N_FIXED, np.int64)
    lists = _lists(fixed, atoms, geometry, max_rows, weight_bytes)
    _fill_shapes(fixed, geometry, weight_bytes)
    n_scratch = _fill_scratch(fixed, geometry, atoms, max_rows, context_tokens, n_threads)
    scratch: F32Array = aligned_zeros(n_scratch, np.float32)  # whole cache lines are read faster
    scratch[EPS] = geometry.norm_eps
    return np.concatenate([fixed, *lists]), scratch


def _fill_shapes(fixed: I64Array, g: Geometry, item_bytes: int) -> None:
    """Fill the entries that follow from the geometry alone."""
    fixed[HIDDEN] = g.hidden_size
    fixed[HEAD_DIM] = g.head_dim
    fixed[HEADS_PER_GROUP] = g.heads_per_group
    fixed[QKV_ROWS] = g.qkv_rows
    fixed[O_COLUMNS] = g.o_columns
    fixed[QKV_BIAS] = g.qkv_bias
    fixed[QK_NORM] = g.qk_norm
    fixed[TILE_SIZE] = TILE_BYTES[g.fmt] // item_bytes
    fixed[K_TILES] = round_up(g.hidden_size, TILE_K) // TILE_K
    fixed[O_K_TILES] = round_up(g.o_columns, TILE_K) // TILE_K
    fixed[O_SKIP] = g.o_offset_bytes // item_bytes
    fixed[DOWN_SKIP] = g.down_offset_bytes // item_bytes


def _lists(
    fixed: I64Array, atoms: MemberAtoms, g: Geometry, max_rows: int, item_bytes: int
) -> list[I64Array]:
    """Return the lists in order and enter where each will start."""
    none = np.zeros(0, np.int64)
    groups = np.concatenate([none, *atoms.head_groups])
    columns = np.concatenate([none, *atoms.columns])
    rows = np.zeros(max_rows, np.int64)
    named = {
        GROUP_BOUNDS: np.cumsum([0, *map(len, atoms.head_groups)]),
        GROUPS: groups // item_bytes,
        BIASES: (groups + g.bias_offset_bytes) // 4,
        COLUMN_BOUNDS: np.cumsum([0, *map(len, atoms.columns)]),
        COLUMNS: columns // item_bytes,
        NORMS: atoms.norms // 4,
        VOCAB: atoms.vocab // item_bytes,
        VOCAB_ROWS: atoms.vocab_n_rows,
        SLOTS: rows,
        POSITIONS: rows,
    }
    start = N_FIXED
    for entry, values in named.items():
        fixed[entry] = start
        start += values.size
    fixed[N_VOCAB] = atoms.vocab.size
    fixed[FINAL_NORM] = atoms.final_norm // 4
    return [values.astype(np.int64) for values in named.values()]


def _fill_scratch(
    fixed: I64Array, g: Geometry, atoms: MemberAtoms, max_rows: int, context_tokens: int,
    n_threads: int,
) -> int:  # fmt: skip
    """Place the pieces of scratch one after the other and return their total size."""
    n_groups = max(map(len, atoms.head_groups), default=0)
    n_columns = max(map(len, atoms.columns), default=0)
    fixed[NORMED_STRIDE] = round_up(g.hidden_size, TILE_K)
    fixed[QKV_STRIDE] = n_groups * g.qkv_rows
    fixed[MIXED_STRIDE] = n_groups * round_up(g.o_columns, TILE_K)
    fixed[ACT_STRIDE] = n_columns * COLUMNS_PER_ATOM
    fixed[GATE_UP_STRIDE] = 2 * COLUMNS_PER_ATOM * max_rows
    fixed[KEPT_STRIDE] = kept_floats(max_rows)
    fixed[SCORES_STRIDE] = round_up(context_tokens, 64) + 8
    for rows, quantised in (
        (NORMED_STRIDE, NORMED_Q_STRIDE), (MIXED_STRIDE, MIXED_Q_STRIDE), (ACT_STRIDE, ACT_Q_STRIDE)
    ):  # fmt: skip
        fixed[quantised] = fixed[rows] // TILE_K * BLOCK_FLOATS
    sizes = {
        TURNS: max_rows * g.head_dim,
        NORMED: max_rows * fixed[NORMED_STRIDE],
        QKV: max_rows * fixed[QKV_STRIDE],
        MIXED: max_rows * fixed[MIXED_STRIDE],
        ACT: max_rows * fixed[ACT_STRIDE],
        GATE_UP: n_threads * fixed[GATE_UP_STRIDE],
        KEPT: n_threads * fixed[KEPT_STRIDE],
        SCORES: n_threads * MOST_HEADS * fixed[SCORES_STRIDE],
        PARTIAL: max_rows * g.hidden_size,
        NORMED_Q: max_rows * fixed[NORMED_Q_STRIDE],
        MIXED_Q: max_rows * fixed[MIXED_Q_STRIDE],
        ACT_Q: max_rows * fixed[ACT_Q_STRIDE],
        SUMS: max(max_rows, MOST_SUMS) * g.hidden_size,
    }
    start = ALIGN_BYTES // 4
    for entry, size in sizes.items():
        fixed[entry] = start
        start += round_up(int(size), ALIGN_BYTES // 4)
    return start
