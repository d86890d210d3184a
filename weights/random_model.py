"""Makes models of a given shape with random weights, for benchmarks: on disk, or in memory only.

Fast: tiles are reused.
"""

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from kernels.layout import (
    COLUMNS_PER_ATOM,
    TILE_BYTES,
    TILE_K,
    TILE_ROWS,
    VOCAB_ROWS_PER_ATOM,
    Geometry,
    matrix_bytes,
    round_up,
)
from kernels.tiles import pack_matrix
from weights.blobs import (
    column_blobs,
    final_norm_blob,
    head_group_blob,
    layer_norms_blob,
    vocab_blobs,
)
from weights.checkpoint import read_json
from weights.families import read_config
from weights.manifest import DType, Manifest, Section
from weights.sections import SECTION_ALIGN_BYTES, SectionShape, section_shapes
from weights.writer import Progress, Provenance, draft_manifest, write_model

__all__ = ["convert_random", "making_bytes", "random_manifest", "random_weights"]

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]

# Tiles per pool: 4 Mi weights. A prime, so that runs that wrap around never line up.
_POOL_TILES = 16381
# Packed bytes made at once.
_BATCH_BYTES = 1 << 20


class _Pool:
    """Normal numbers of one standard deviation, plain and packed as tiles."""

    def __init__(self, rng: np.random.Generator, deviation: float, g: Geometry) -> None:
        self._rng = rng
        tile_items = TILE_ROWS * TILE_K
        values = rng.standard_normal(_POOL_TILES * tile_items, dtype=np.float32)
        values *= np.float32(deviation)
        self._values = values
        packed = pack_matrix(values.reshape(-1, TILE_K), g.fmt)
        self._tiles = packed.reshape(_POOL_TILES, TILE_BYTES[g.fmt])

    def values(self, n_rows: int, n_k: int) -> F32Array:
        """Return (n_rows, n_k) float32 from a random place on, wrapping around."""
        start = int(self._rng.integers(self._values.size))
        places = np.arange(start, start + n_rows * n_k)
        return self._values.take(places, mode="wrap").reshape(n_rows, n_k)

    def tiles(self, n_bytes: int) -> U8Array:
        """Return packed tiles from a random one on, wrapping around: (n_bytes,) uint8."""
        start = int(self._rng.integers(_POOL_TILES))
        n_tiles = n_bytes // self._tiles.shape[1]
        if start + n_tiles <= _POOL_TILES:
            return self._tiles[start : start + n_tiles].reshape(-1)
        return self._tiles.take(range(start, start + n_tiles), axis=0, mode="wrap").reshape(-1)


class RandomAtoms:
    """Random atoms of a geometry; standard deviation 1/sqrt(k), as in trained models.

    Matrices that fill whole tiles are runs of ready-made tiles; the rest is packed one by one,
    so that padding is zero as in any model.
    """

    def __init__(self, geometry: Geometry, seed: int) -> None:
        g = geometry
        self._g = g
        self._rng = np.random.default_rng(seed)
        self._by_input = _Pool(self._rng, g.hidden_size**-0.5, g)
        self._by_head = _Pool(self._rng, (g.n_heads * g.head_dim) ** -0.5, g)
        self._by_column = _Pool(self._rng, g.n_columns**-0.5, g)

    def atoms(self, shape: SectionShape, first: int, n_atoms: int) -> U8Array:
        """Return atoms [first, first + n_atoms): (n_atoms, atom_bytes) uint8."""
        match shape.kind:
            case "head_group":
                return np.stack([self._head_group() for _ in range(n_atoms)])
            case "column":
                return np.concatenate([self._column(first + i) for i in range(n_atoms)])
            case "embedding" | "vocab":
                return np.concatenate([self._vocab(first + i) for i in range(n_atoms)])
            case "layer_norms":
                g = self._g
                sizes = [g.hidden_size] * 2 + [g.head_dim] * (2 if g.qk_norm else 0)
                return layer_norms_blob(g, [self._norm(size) for size in sizes])[None]
            case "final_norm":
                return final_norm_blob(self._g, self._norm(self._g.hidden_size))[None]

    def _norm(self, n: int) -> F32Array:
        return self._rng.uniform(0.8, 1.2, n).astype(np.float32)

    def _head_group(self) -> U8Array:
        g = self._g
        bias = None
        if g.qkv_bias:
            bias = self._rng.uniform(-0.1, 0.1, g.qkv_rows).astype(np.float32)
        d, rows, o_columns = g.hidden_size, g.qkv_rows, g.o_columns
        if rows % TILE_ROWS or d % TILE_K or o_columns % TILE_K:
            qkv, o = self._by_input.values(rows, d), self._by_head.values(d, o_columns)
            return head_group_blob(g, qkv, o, bias)
        blob = np.zeros(g.head_group_bytes, np.uint8)
        _put(blob, 0, self._by_input.tiles(matrix_bytes(rows, d, g.fmt)))
        _put(blob, g.o_offset_bytes, self._by_head.tiles(matrix_bytes(d, o_columns, g.fmt)))
        if bias is not None:
            _put(blob, g.bias_offset_bytes, bias.view(np.uint8))
        return blob

    def _column(self, index: int) -> U8Array:
        g = self._g
        d = g.hidden_size
        n = min(COLUMNS_PER_ATOM, g.n_columns - index * COLUMNS_PER_ATOM)
        if n < COLUMNS_PER_ATOM or d % TILE_K:
            gate, up = self._by_input.values(n, d), self._by_input.values(n, d)
            return column_blobs(g, gate, up, self._by_column.values(d, n))
        blob = np.zeros(g.column_bytes, np.uint8)
        _put(blob, 0, self._by_input.tiles(matrix_bytes(2 * n, d, g.fmt)))
        _put(blob, g.down_offset_bytes, self._by_column.tiles(matrix_bytes(d, n, g.fmt)))
        return blob[None]

    def _vocab(self, index: int) -> U8Array:
        g = self._g
        n = min(VOCAB_ROWS_PER_ATOM, g.vocab_size - index * VOCAB_ROWS_PER_ATOM)
        if n < VOCAB_ROWS_PER_ATOM or g.hidden_size % TILE_K:
            return vocab_blobs(g, self._by_input.values(n, g.hidden_size))
        blob = np.zeros(g.vocab_bytes, np.uint8)
        _put(blob, 0, self._by_input.tiles(matrix_bytes(n, g.hidden_size, g.fmt)))
        return blob[None]


def _put(blob: U8Array, offset_bytes: int, part: U8Array) -> None:
    blob[offset_bytes : offset_bytes + part.size] = part


def convert_random(
    config_path: Path,
    out: Path,
    dtype: DType,
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Write a model of the shape in `config_path` with random weights.

    Its texts are noise and never end by themselves: the config's EOS tokens are left out.
    Weights repeat after some 4 million numbers, which no kernel notices.

    Args:
        config_path: a config.json.
        out: must not exist.
        dtype: how to store the matrices.
        seed: equal seeds give equal models.
        progress: called with bytes written and bytes in all.

    Returns:
        The manifest of the new model.

    Raises:
        HeadwiseError: unsupported config, or `out` exists or cannot be written.
    """
    draft = _draft(Path(config_path), dtype, seed)
    return write_model(RandomAtoms(draft.geometry, seed), Path(out), draft, {}, progress)


def random_manifest(config_path: Path, dtype: DType, seed: int = 0) -> Manifest:
    """Return where the atoms of `random_weights` lie; nothing is made yet.

    Such a model is for kernels alone: it has no embedding rows and no hashes.

    Raises:
        ModelError: unsupported config.
    """
    draft = _draft(config_path, dtype, seed)
    sections, end_bytes = [], 0
    # What a tied model lacks is the embedding.
    for shape in section_shapes(draft.geometry, tied_embeddings=True):
        sections.append(
            Section(shape.kind, shape.layer, end_bytes, shape.atom_bytes, ("",) * shape.n_atoms)
        )
        end_bytes = round_up(sections[-1].end_bytes, SECTION_ALIGN_BYTES)
    return msgspec.structs.replace(draft, sections=tuple(sections), weights_bytes=end_bytes)


def making_bytes(geometry: Geometry) -> int:
    """Return a bound on the memory that `random_weights` takes besides its result, for a while."""
    g = geometry
    # Ready-made tiles, and the numbers of one whole atom on their way into a blob (measured).
    largest = max(g.qkv_rows + g.o_columns, 3 * COLUMNS_PER_ATOM, VOCAB_ROWS_PER_ATOM)
    return (128 << 20) + 16 * largest * g.hidden_size


def random_weights(manifest: Manifest, seed: int = 0) -> U8Array:
    """Return the atoms of a `random_manifest`: (weights_bytes,) uint8 from a page's start on.

    Raises:
        MemoryError: they do not fit.
    """
    raw = np.empty(manifest.weights_bytes + SECTION_ALIGN_BYTES, np.uint8)
    store = raw[-raw.ctypes.data % SECTION_ALIGN_BYTES :][: manifest.weights_bytes]
    source = RandomAtoms(manifest.geometry, seed)
    for section in manifest.sections:
        n_atoms, atom_bytes = len(section.hashes), section.stride_bytes
        shape = SectionShape(section.kind, section.layer, n_atoms, atom_bytes)
        batch = max(1, _BATCH_BYTES // atom_bytes)
        for first in range(0, n_atoms, batch):
            blobs = source.atoms(shape, first, min(batch, n_atoms - first)).reshape(-1)
            _put(store, section.offset_bytes + first * atom_bytes, blobs)
    return store


def _draft(config_path: Path, dtype: DType, seed: int) -> Manifest:
    """Return a manifest without sections; such a model never ends a text by itself."""
    config = read_config(read_json(config_path), str(config_path))
    config = msgspec.structs.replace(config, eos_ids=())
    provenance = Provenance(source=f"random weights, seed {seed}, shape of {config_path.name}")
    return draft_manifest(config, dtype, f"random-{config.family}", provenance)
