"""Converts a Hugging Face checkpoint into a headwise model directory, tensor by tensor."""

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from kernels.errors import ModelError
from kernels.layout import COLUMNS_PER_ATOM, VOCAB_ROWS_PER_ATOM, Geometry
from weights.blobs import (
    column_blobs,
    final_norm_blob,
    head_group_blob,
    largest_weight,
    layer_norms_blob,
    vocab_blobs,
)
from weights.checkpoint import Checkpoint, StoredMatrix, read_json
from weights.config import ModelConfig
from weights.families import TensorNames, read_config
from weights.families.raw import RawConfig
from weights.manifest import SIDE_FILES, DType, Manifest
from weights.random_model import convert_random
from weights.sections import SectionShape
from weights.writer import Progress, Provenance, draft_manifest, write_model

__all__ = ["Provenance", "convert", "convert_random"]

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]


class CheckpointAtoms:
    """Cuts atoms out of a checkpoint; holds one whole tensor at most, in its stored type.

    Only W_o and down are held, since their atoms are columns; everything else is read by rows.
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, geometry: Geometry) -> None:
        self._checkpoint = checkpoint
        self._names = TensorNames(config)
        self._g = geometry
        self._largest = largest_weight(geometry.fmt)
        self._held_name = ""
        self._held: StoredMatrix | None = None

    def atoms(self, shape: SectionShape, first: int, n_atoms: int) -> U8Array:
        """Return atoms [first, first + n_atoms): (n_atoms, atom_bytes) uint8; ModelError."""
        match shape.kind:
            case "head_group":
                stop = first + n_atoms
                return np.stack([self._head_group(shape.layer, i) for i in range(first, stop)])
            case "column":
                return self._columns(shape.layer, first, n_atoms)
            case "embedding":
                return self._token_rows(self._names.embedding, first, n_atoms)
            case "vocab":
                return self._token_rows(self._names.lm_head, first, n_atoms)
            case "layer_norms":
                return self._layer_norms(shape.layer)
            case "final_norm":
                norm = self._vector(self._names.final_norm)
                return final_norm_blob(self._g, norm)[None]

    def _rows(self, name: str, first: int, n_rows: int) -> F32Array:
        return self._checkpoint.read(name, first, n_rows).columns(largest=self._largest)

    def _vector(self, name: str) -> F32Array:
        vector: F32Array = self._checkpoint.read(name).columns()[0]
        return vector

    def _columns_of(self, name: str, first: int, n_columns: int) -> F32Array:
        if self._held is None or self._held_name != name:
            self._held = None  # freed before the next one is read
            self._held, self._held_name = self._checkpoint.read(name), name
        return self._held.columns(first, first + n_columns, self._largest)

    def _head_group(self, layer: int, group: int) -> U8Array:
        g, names = self._g, self._names.layer(layer)
        q_rows, d = g.heads_per_group * g.head_dim, g.head_dim
        parts = [(names.q, q_rows), (names.k, d), (names.v, d)]
        qkv = np.concatenate([self._rows(name, group * n, n) for name, n in parts])
        bias = None
        if g.qkv_bias:
            biases = [(names.q_bias, q_rows), (names.k_bias, d), (names.v_bias, d)]
            cut = [self._vector(name)[group * n : (group + 1) * n] for name, n in biases]
            bias = np.concatenate(cut)
        o = self._columns_of(names.o, group * q_rows, q_rows)
        return head_group_blob(g, qkv, o, bias)

    def _columns(self, layer: int, first: int, n_atoms: int) -> U8Array:
        names = self._names.layer(layer)
        start = first * COLUMNS_PER_ATOM
        n = min(n_atoms * COLUMNS_PER_ATOM, self._g.n_columns - start)
        gate, up = self._rows(names.gate, start, n), self._rows(names.up, start, n)
        return column_blobs(self._g, gate, up, self._columns_of(names.down, start, n))

    def _token_rows(self, name: str, first: int, n_atoms: int) -> U8Array:
        start = first * VOCAB_ROWS_PER_ATOM
        n = min(n_atoms * VOCAB_ROWS_PER_ATOM, self._g.vocab_size - start)
        return vocab_blobs(self._g, self._rows(name, start, n))

    def _layer_norms(self, layer: int) -> U8Array:
        names = self._names.layer(layer)
        wanted = [names.attn_norm, names.mlp_norm, names.q_norm, names.k_norm]
        return layer_norms_blob(self._g, [self._vector(name) for name in wanted if name])[None]


def _read_source(src: Path) -> tuple[ModelConfig, Checkpoint]:
    """Read config and headers, check that they fit; raises ModelError."""
    if not src.is_dir():
        raise ModelError(f"'{src}' is no directory; give a Hugging Face checkpoint directory")
    config = read_config(read_json(src / "config.json"), str(src / "config.json"))
    generation_path = src / "generation_config.json"
    if generation_path.is_file():
        # Chat models list all their end tokens here, config.json often has only one.
        eos_ids = RawConfig(read_json(generation_path), str(generation_path)).ids("eos_token_id")
        if eos_ids:
            config = msgspec.structs.replace(config, eos_ids=eos_ids)
            config.validate()
    checkpoint = Checkpoint(src)
    names = TensorNames(config)
    wanted = names.shapes()
    checkpoint.check(wanted)
    unknown = [n for n in checkpoint.shapes if n not in wanted and not names.is_ignorable(n)]
    if unknown:
        raise ModelError(
            f"checkpoint '{src}' holds {len(unknown)} tensors that a {config.family} model does "
            f"not use, such as {min(unknown)}; headwise would compute another model without them"
        )
    return config, checkpoint


def _side_files(src: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name in SIDE_FILES:
        path = src / name
        if path.is_file():
            if path.suffix == ".json":
                read_json(path)
            files[name] = path.read_bytes()
    return files


def convert(
    src: Path,
    out: Path,
    dtype: DType,
    provenance: Provenance | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Convert the checkpoint directory `src` into the new model directory `out`.

    Streams: peak memory stays near the largest tensor in its stored type. On any error
    nothing is left at or beside `out`.

    Args:
        src: Hugging Face directory: config.json, safetensors, optionally a tokenizer.
        out: must not exist.
        dtype: how to store the matrices; norms and biases stay float32.
        provenance: kept in the manifest; the model's name is the last part of its source.
        progress: called with bytes written and bytes in all.

    Returns:
        The manifest of the new model.

    Raises:
        ModelError: `src` is incomplete, damaged or unsupported.
        InputError: `out` exists or cannot be written.
        ResourceError: the disk is full.
    """
    src, out = Path(src), Path(out)
    config, checkpoint = _read_source(src)
    provenance = provenance or Provenance()
    name = provenance.source.rstrip("/").rpartition("/")[2] or src.resolve().name
    draft = draft_manifest(config, dtype, name, provenance)
    source = CheckpointAtoms(checkpoint, config, draft.geometry)
    return write_model(source, out, draft, _side_files(src), progress)
