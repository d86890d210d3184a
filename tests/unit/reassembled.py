"""Puts checkpoint tensors together again from atoms: an oracle read off kernels/layout.py."""

import numpy as np
import numpy.typing as npt

from kernels.layout import COLUMNS_PER_ATOM, VOCAB_ROWS_PER_ATOM
from kernels.tiles import unpack_matrix
from weights.directory import ModelDirectory
from weights.families import TensorNames
from weights.sections import AtomKind

__all__ = ["Reassembled"]

F32Array = npt.NDArray[np.float32]


class Reassembled:
    """The tensors behind the atoms of a model, padding checked to be zero."""

    def __init__(self, model: ModelDirectory) -> None:
        self.model, self.g, self.fmt = model, model.geometry, model.manifest.fmt

    def blob(self, kind: AtomKind, layer: int, index: int) -> npt.NDArray[np.uint8]:
        return self.model.atom_bytes(self.model.manifest.atom(kind, layer, index))

    def tensors(self) -> dict[str, F32Array]:
        names = TensorNames(self.model.config)
        g = self.g
        found = {names.final_norm: self.floats("final_norm", -1, 0, g.hidden_size)}
        found[names.lm_head] = self.rows("vocab")
        if not self.model.config.tied_embeddings:
            found[names.embedding] = self.rows("embedding")
        for layer in range(g.n_layers):
            found.update(self.layer(layer, names))
        return found

    def floats(self, kind: AtomKind, layer: int, start: int, n: int) -> F32Array:
        part = self.blob(kind, layer, 0)[4 * start : 4 * (start + n)]
        return np.frombuffer(part.tobytes(), np.float32)

    def rows(self, kind: AtomKind) -> F32Array:
        g = self.g
        atoms = [
            unpack_matrix(self.blob(kind, -1, i), VOCAB_ROWS_PER_ATOM, g.hidden_size, self.fmt)
            for i in range(g.n_vocab_atoms)
        ]
        table = np.concatenate(atoms)
        assert not table[g.vocab_size :].any(), "padding is zero"
        return table[: g.vocab_size]

    def layer(self, layer: int, names: TensorNames) -> dict[str, F32Array]:
        g, n = self.g, names.layer(layer)
        d, wide = g.head_dim, g.hidden_size
        found = {
            n.attn_norm: self.floats("layer_norms", layer, 0, wide),
            n.mlp_norm: self.floats("layer_norms", layer, wide, wide),
        }
        if g.qk_norm:
            found[n.q_norm] = self.floats("layer_norms", layer, 2 * wide, d)
            found[n.k_norm] = self.floats("layer_norms", layer, 2 * wide + d, d)
        groups = [self.blob("head_group", layer, i) for i in range(g.n_kv_heads)]
        split = [g.o_columns, g.o_columns + d]
        qkv = [np.split(unpack_matrix(b, g.qkv_rows, wide, self.fmt), split) for b in groups]
        for i, name in enumerate((n.q, n.k, n.v)):
            found[name] = np.concatenate([parts[i] for parts in qkv])
        o = [unpack_matrix(b[g.o_offset_bytes :], wide, g.o_columns, self.fmt) for b in groups]
        found[n.o] = np.concatenate(o, axis=1)
        if g.qkv_bias:
            raw = [b[g.bias_offset_bytes :][: 4 * g.qkv_rows].tobytes() for b in groups]
            biases = [np.split(np.frombuffer(b, np.float32), split) for b in raw]
            for i, name in enumerate((n.q_bias, n.k_bias, n.v_bias)):
                found[name] = np.concatenate([parts[i] for parts in biases])
        found.update(self.columns(layer, names))
        return found

    def columns(self, layer: int, names: TensorNames) -> dict[str, F32Array]:
        g, n = self.g, names.layer(layer)
        blobs = [self.blob("column", layer, i) for i in range(g.n_column_atoms)]
        gate_up = np.concatenate(
            [unpack_matrix(b, 2 * COLUMNS_PER_ATOM, g.hidden_size, self.fmt) for b in blobs]
        ).reshape(-1, 2, 8, g.hidden_size)
        down = np.concatenate(
            [unpack_matrix(b[g.down_offset_bytes :], g.hidden_size, 32, self.fmt) for b in blobs],
            axis=1,
        )
        gate = gate_up[:, 0].reshape(-1, g.hidden_size)
        up = gate_up[:, 1].reshape(-1, g.hidden_size)
        padding = (gate[g.n_columns :], up[g.n_columns :], down[:, g.n_columns :])
        assert not any(part.any() for part in padding)
        return {
            n.gate: gate[: g.n_columns],
            n.up: up[: g.n_columns],
            n.down: down[:, : g.n_columns],
        }
