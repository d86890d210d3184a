"""Random models twice: as the oracle's plain matrices and as blobs in a store, plus placements."""

import functools
import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import config, njit

from kernels.aligned import aligned_zeros
from kernels.jit import JIT_DISABLED
from kernels.layout import (
    COLUMNS_PER_ATOM,
    TILE_ROWS,
    VOCAB_ROWS_PER_ATOM,
    Geometry,
    WeightFormat,
)
from kernels.paging import PAGE_TOKENS, n_pages_for, page_elements
from kernels.pool import Pool
from kernels.stage import MemberAtoms, StageKernels
from kernels.tiles import pack_matrix, unpack_matrix
from tests.naive import NaiveLayer, NaiveModel

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

# Where nothing or little is compiled, all formats run by default.
COMPILED = not (JIT_DISABLED or config.BOUNDSCHECK)


def compiled_slowly(*values: Any) -> Any:
    """Return a format that only the slow run compiles."""
    return pytest.param(*values, marks=[pytest.mark.slow] if COMPILED else [])


@dataclass
class PackedModel:
    """A store with every atom of a model and the oracle that holds the same numbers."""

    geometry: Geometry
    store: U8
    naive: NaiveModel
    groups: list[list[int]]  # byte offsets [layer][group]
    columns: list[list[int]]  # [layer][column atom]
    norms: list[int]
    vocab: list[int]
    final_norm: int

    def atoms(
        self,
        groups: list[list[int]] | None = None,
        columns: list[list[int]] | None = None,
        vocab: list[int] | None = None,
    ) -> MemberAtoms:
        """Return the atoms of a member; each argument lists atom numbers, None = all."""
        g = self.geometry
        groups = groups or [list(range(g.n_kv_heads)) for _ in range(g.n_layers)]
        columns = columns or [list(range(g.n_column_atoms)) for _ in range(g.n_layers)]
        vocab = list(range(g.n_vocab_atoms)) if vocab is None else vocab
        first = np.array([v * VOCAB_ROWS_PER_ATOM for v in vocab], np.int64)
        n_rows = np.minimum(VOCAB_ROWS_PER_ATOM, g.vocab_size - first)
        return MemberAtoms(
            layers=tuple(range(g.n_layers)),
            head_groups=_offsets(self.groups, groups),
            columns=_offsets(self.columns, columns),
            norms=np.array(self.norms, np.int64),
            vocab=np.array([self.vocab[v] for v in vocab], np.int64),
            vocab_first_rows=first,
            vocab_n_rows=n_rows.astype(np.int64),
            final_norm=self.final_norm if vocab else -1,
        )


def _offsets(
    all_offsets: list[list[int]], chosen: list[list[int]]
) -> tuple[npt.NDArray[np.int64], ...]:
    return tuple(
        np.array([offsets[i] for i in picks], np.int64)
        for offsets, picks in zip(all_offsets, chosen, strict=True)
    )


class _Writer:
    """Appends blobs; matrices are replaced by what their format can hold."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.parts: list[bytes] = []
        self.n_bytes = 0

    def blob(self, n_bytes: int, pieces: dict[int, bytes]) -> int:
        data = bytearray(n_bytes)
        for offset, piece in pieces.items():
            data[offset : offset + len(piece)] = piece
        assert len(data) == n_bytes
        start = self.n_bytes
        self.parts.append(bytes(data))
        self.n_bytes += n_bytes
        return start

    def pack(self, w: F32) -> tuple[bytes, npt.NDArray[np.float64]]:
        """Return the packed bytes and the exact values they stand for."""
        fmt = self.geometry.fmt
        blob = pack_matrix(np.ascontiguousarray(w), fmt)
        return blob.tobytes(), unpack_matrix(blob, *w.shape, fmt).astype(np.float64)


def make_model(geometry: Geometry, seed: int = 0, kv_dtype: type = np.float64) -> PackedModel:
    """Return a random model whose activations stay near 1."""
    rng = np.random.default_rng(seed)
    writer = _Writer(geometry)
    layers, groups, columns, norms = [], [], [], []
    for _ in range(geometry.n_layers):
        layer, group_offsets, column_offsets, norm_offset = _make_layer(geometry, writer, rng)
        layers.append(layer)
        groups.append(group_offsets)
        columns.append(column_offsets)
        norms.append(norm_offset)
    head, vocab = _make_vocab(geometry, writer, rng)
    final = (1 + 0.1 * rng.standard_normal(geometry.hidden_size)).astype(np.float32)
    final_offset = writer.blob(geometry.final_norm_bytes, {0: final.tobytes()})
    store = aligned_zeros(writer.n_bytes, np.uint8)
    store[:] = np.frombuffer(b"".join(writer.parts), np.uint8)
    d = geometry.head_dim
    inv_freq = 10000.0 ** -(np.arange(0, d, 2) / d)
    naive = NaiveModel(
        geometry, layers, final.astype(np.float64), head, inv_freq, kv_dtype=kv_dtype
    )
    return PackedModel(geometry, store, naive, groups, columns, norms, vocab, final_offset)


def _matrix(rng: np.random.Generator, n_rows: int, n_k: int) -> F32:
    return (rng.standard_normal((n_rows, n_k)) / np.sqrt(n_k)).astype(np.float32)


def _make_layer(
    g: Geometry, writer: _Writer, rng: np.random.Generator
) -> tuple[NaiveLayer, list[int], list[int], int]:
    d, n_q, hidden = g.head_dim, g.heads_per_group, g.hidden_size
    attn = []
    for _ in range(g.n_kv_heads):
        qkv_bytes, qkv = writer.pack(2 * _matrix(rng, g.qkv_rows, hidden))
        o_bytes, o = writer.pack(_matrix(rng, hidden, g.o_columns))
        bias = rng.standard_normal(g.qkv_rows).astype(np.float32) * g.qkv_bias
        pieces = {0: qkv_bytes, g.o_offset_bytes: o_bytes}
        if g.qkv_bias:
            pieces[g.bias_offset_bytes] = bias.tobytes()
        attn.append((qkv, o, bias.astype(np.float64), writer.blob(g.head_group_bytes, pieces)))
    mlp = [_make_column(g, writer, rng, c) for c in range(g.n_column_atoms)]
    gains = (1 + 0.1 * rng.standard_normal(2 * hidden + 2 * d * g.qk_norm)).astype(np.float32)
    norm_offset = writer.blob(g.layer_norms_bytes, {0: gains.tobytes()})
    gain = gains.astype(np.float64)
    layer = NaiveLayer(
        attn_norm=gain[:hidden],
        mlp_norm=gain[hidden : 2 * hidden],
        q=np.concatenate([a[0][: n_q * d] for a in attn]),
        k=np.concatenate([a[0][n_q * d : (n_q + 1) * d] for a in attn]),
        v=np.concatenate([a[0][(n_q + 1) * d :] for a in attn]),
        o=np.concatenate([a[1] for a in attn], axis=1),
        gate=np.concatenate([m[0] for m in mlp]),
        up=np.concatenate([m[1] for m in mlp]),
        down=np.concatenate([m[2] for m in mlp], axis=1),
        q_bias=np.concatenate([a[2][: n_q * d] for a in attn]),
        k_bias=np.concatenate([a[2][n_q * d : (n_q + 1) * d] for a in attn]),
        v_bias=np.concatenate([a[2][(n_q + 1) * d :] for a in attn]),
        q_norm=gain[2 * hidden : 2 * hidden + d] if g.qk_norm else None,
        k_norm=gain[2 * hidden + d :] if g.qk_norm else None,
    )
    return layer, [a[3] for a in attn], [m[3] for m in mlp], norm_offset


def _make_column(
    g: Geometry, writer: _Writer, rng: np.random.Generator, c: int
) -> tuple[npt.NDArray[np.float64], ...]:
    n = min(COLUMNS_PER_ATOM, g.n_columns - c * COLUMNS_PER_ATOM)
    hidden = g.hidden_size
    gate_up = np.zeros((2 * COLUMNS_PER_ATOM, hidden), np.float32)
    blocks = gate_up.reshape(-1, 2, TILE_ROWS, hidden)  # [8 columns][gate or up][row]
    rows = np.zeros((2, COLUMNS_PER_ATOM, hidden), np.float32)
    rows[:, :n] = 2 * _matrix(rng, 2 * n, hidden).reshape(2, n, hidden)
    blocks[:] = rows.reshape(2, -1, TILE_ROWS, hidden).transpose(1, 0, 2, 3)
    down = np.zeros((hidden, COLUMNS_PER_ATOM), np.float32)
    down[:, :n] = rng.standard_normal((hidden, n)) / np.sqrt(g.n_columns)
    gate_up_bytes, exact = writer.pack(gate_up)
    down_bytes, exact_down = writer.pack(down)
    offset = writer.blob(g.column_bytes, {0: gate_up_bytes, g.down_offset_bytes: down_bytes})
    by_kind = exact.reshape(-1, 2, TILE_ROWS, hidden).transpose(1, 0, 2, 3).reshape(2, -1, hidden)
    return by_kind[0, :n], by_kind[1, :n], exact_down[:, :n], offset  # type: ignore[return-value]


def _make_vocab(
    g: Geometry, writer: _Writer, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], list[int]]:
    heads, offsets = [], []
    for first in range(0, g.vocab_size, VOCAB_ROWS_PER_ATOM):
        n = min(VOCAB_ROWS_PER_ATOM, g.vocab_size - first)
        packed, exact = writer.pack(_matrix(rng, n, g.hidden_size))
        offsets.append(writer.blob(g.vocab_bytes, {0: packed}))
        heads.append(exact)
    return np.concatenate(heads), offsets


def make_stage(
    model: PackedModel,
    atoms: MemberAtoms | None = None,
    pool: Pool | None = None,
    kv_dtype: type = np.float32,
    n_slots: int = 1,
    max_rows: int = 64,
    context_tokens: int = 96,
    int8: bool = False,
) -> StageKernels:
    """Return kernels over fresh pages that hold NaN, handed out in a scrambled order."""
    atoms = atoms or model.atoms()
    d = model.geometry.head_dim
    per_context = n_pages_for(context_tokens)
    n_pages = n_slots * atoms.n_local_groups * per_context
    numbers = np.random.default_rng(1).permutation(n_pages).astype(np.int32)
    page_table = numbers.reshape(n_slots, atoms.n_local_groups, per_context)
    pages = np.zeros((max(n_pages, 1), page_elements(d, kv_dtype)), kv_dtype)
    # NaN, in a page of bytes as every scale, must never be read.
    pages[:] = {np.uint16: 0x7E00, np.int8: 77}.get(kv_dtype, np.nan)
    if kv_dtype == np.int8:
        pages.view(np.float32)[:, -2 * PAGE_TOKENS :] = np.nan
    return StageKernels(
        model.geometry, model.naive.inv_freq, model.naive.rope_scale, model.store, atoms,
        pages, page_table, max_rows, context_tokens, pool or Pool(1), int8,
    )  # fmt: skip


SMALL = Geometry(
    hidden_size=40, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, n_columns=50,
    vocab_size=131, fmt=WeightFormat.F32, norm_eps=1e-5,
)  # fmt: skip


def geometry(**changes: object) -> Geometry:
    """Return the small geometry with changes."""
    return replace(SMALL, **changes)  # type: ignore[arg-type]


def step_bits(geometry: Geometry, kv_dtype: type, int8: bool) -> str:
    """Return residuals and logits of five rows and then of one, bit by bit.

    To compare processes and CPUs. A single row goes atom by atom where there are a few.
    """
    stage = make_stage(make_model(geometry), kv_dtype=kv_dtype, int8=int8)
    found = []
    for n_rows, first in ((5, 0), (1, 5)):
        positions = np.arange(first, first + n_rows, dtype=np.int32)
        stage.begin(np.zeros(n_rows, np.int32), positions)
        shape = n_rows, geometry.hidden_size
        x = np.random.default_rng(n_rows).standard_normal(shape).astype(np.float32)
        stage.run_layers(x)
        out = np.zeros((n_rows, geometry.vocab_size), np.float32)
        stage.logits(x, out)
        found += [x.tobytes().hex(), out.tobytes().hex()]
    return " ".join(found)


@functools.cache  # compiled once a process
def callable_from_python(kernel: Any) -> Any:
    """Return an entry for a kernel that only other kernels call."""
    if JIT_DISABLED:
        return kernel

    # Merged kernels cannot be called with *args, so one entry per number of arguments.
    def one(a: Any) -> Any:
        return kernel(a)

    def three(a: Any, b: Any, c: Any) -> Any:
        return kernel(a, b, c)

    def many(*args: Any) -> Any:
        return kernel(*args)

    n = len(inspect.signature(getattr(kernel, "py_func", kernel)).parameters)
    return njit(nogil=True)({1: one, 3: three}.get(n, many))
