"""Writes a GGUF file of a given shape with random weights, every matrix in one format.

Needs the package `gguf`. Weights repeat after some 4 million numbers, which no kernel notices.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt

from tools.peer_child import PeerError, Shape

__all__ = ["GGUF_TYPES", "write_gguf"]

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]

GGUF_TYPES = {"f32": "F32", "f16": "F16", "q8": "Q8_0", "q4": "Q4_0"}
# Families whose tensors llama.cpp names otherwise than by the family.
_ARCHITECTURES = {"mistral": "llama"}
_BLOCK = 32
# A multiple of the block, but of no matrix: runs that wrap around never line up.
_POOL_ITEMS = _BLOCK * 131_071


class _Tensor(NamedTuple):
    """A tensor to write; (rows, columns) are numpy's order, vectors have no rows."""

    name: str
    shape: tuple[int, ...]


class _Pool:
    """Random numbers in one format, handed out as bytes."""

    def __init__(self, dtype: str, seed: int) -> None:
        self.type: Any = gguf.GGMLQuantizationType[GGUF_TYPES[dtype]]
        values = np.random.default_rng(seed).standard_normal(_POOL_ITEMS, dtype=np.float32)
        # As in trained models of a thousand or two inputs; logits stay finite in all of them.
        values *= np.float32(0.02)
        packed: npt.NDArray[Any] = gguf.quants.quantize(values.reshape(-1, _BLOCK), self.type)
        self._bytes: U8Array = packed.reshape(-1).view(np.uint8)
        self._start = 0

    def n_bytes(self, n_items: int) -> int:
        """Return what n_items numbers take; a whole number of blocks."""
        block_items, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return int(n_items // block_items * block_bytes)

    def take(self, n_bytes: int) -> U8Array:
        """Return the next n_bytes, from the start of a block on, wrapping around."""
        taken = np.resize(np.roll(self._bytes, -self._start), n_bytes)
        self._start = (self._start + n_bytes) % self._bytes.size
        return taken


def write_gguf(path: Path, shape: Shape, dtype: str, context_tokens: int, seed: int = 0) -> None:
    """Write a model that `llama.cpp` loads; it has no vocabulary but its size.

    Scaled rotations are left out: they take no time.

    Args:
        path: of the new file.
        shape: sizes; rows of matrices must be whole blocks of 32 in q8 and q4.
        dtype: f32, f16, q8 or q4, of all matrices; norms and biases are f32.
        context_tokens: the longest context that the file names.
        seed: of the numbers.

    Raises:
        PeerError: a matrix cannot be stored in that format.
        OSError: the file cannot be written.
    """
    writer: Any = gguf.GGUFWriter(path, _ARCHITECTURES.get(shape.family, shape.family))
    _add_sizes(writer, shape, dtype, context_tokens)
    pool, rng = _Pool(dtype, seed), np.random.default_rng(seed)
    tensors = list(_tensors(shape))
    for name, size in tensors:
        if len(size) == 1:
            writer.add_tensor_info(name, size, np.dtype(np.float32), 4 * size[0])
            continue
        if size[1] % _BLOCK and dtype in ("q8", "q4"):
            raise PeerError(f"{name} has rows of {size[1]}: no whole blocks of {_BLOCK} in {dtype}")
        # For packed types gguf wants the shape in bytes.
        row_bytes = pool.n_bytes(size[1])
        packed = (size[0], row_bytes) if dtype in ("q8", "q4") else size
        kind = {"f32": np.float32, "f16": np.float16}.get(dtype, np.uint8)
        n_bytes = size[0] * row_bytes
        writer.add_tensor_info(name, packed, np.dtype(kind), n_bytes, raw_dtype=pool.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, size in tensors:
        if len(size) == 1:
            writer.write_tensor_data(rng.uniform(0.8, 1.2, size).astype(np.float32))
        else:
            writer.write_tensor_data(pool.take(size[0] * pool.n_bytes(size[1])))
    writer.close()


def _add_sizes(writer: Any, shape: Shape, dtype: str, context_tokens: int) -> None:
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.n_columns)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8": "MOSTLY_Q8_0", "q4": "MOSTLY_Q4_0"}
    writer.add_file_type(gguf.LlamaFileType[names[dtype]])


def _tensors(shape: Shape) -> Iterator[_Tensor]:
    """Yield all tensors; a tied model has no output matrix, llama.cpp then takes the embedding."""
    d, columns = shape.hidden_size, shape.n_columns
    q_rows, kv_rows = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    yield _Tensor("token_embd.weight", (shape.vocab_size, d))
    for layer in range(shape.n_layers):
        prefix = f"blk.{layer}."
        yield _Tensor(prefix + "attn_norm.weight", (d,))
        for name, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
            yield _Tensor(f"{prefix}attn_{name}.weight", (rows, d))
            if shape.qkv_bias:
                yield _Tensor(f"{prefix}attn_{name}.bias", (rows,))
            if shape.qk_norm and name != "v":
                yield _Tensor(f"{prefix}attn_{name}_norm.weight", (shape.head_dim,))
        yield _Tensor(prefix + "attn_output.weight", (d, q_rows))
        yield _Tensor(prefix + "ffn_norm.weight", (d,))
        yield _Tensor(prefix + "ffn_gate.weight", (columns, d))
        yield _Tensor(prefix + "ffn_up.weight", (columns, d))
        yield _Tensor(prefix + "ffn_down.weight", (d, columns))
    yield _Tensor("output_norm.weight", (d,))
    if not shape.tied_embeddings:
        yield _Tensor("output.weight", (shape.vocab_size, d))
