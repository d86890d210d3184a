"""Writes small Hugging Face checkpoints of random weights, also broken ones, for tests."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weights.families import TensorNames, read_config

__all__ = ["TINY_CONFIG", "make_checkpoint", "random_tensors", "write_safetensors"]

F32Array = npt.NDArray[np.float32]

TINY_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 44,
    "vocab_size": 131,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_tensors(raw_config: dict[str, Any], seed: int = 0) -> dict[str, F32Array]:
    """Return all tensors of a config, with numbers that bfloat16 and float16 hold exactly."""
    rng = np.random.default_rng(seed)
    shapes = TensorNames(read_config(raw_config)).shapes()
    return {
        name: (rng.integers(-127, 128, shape) / 64).astype(np.float32)
        for name, shape in shapes.items()
    }


def _stored(values: npt.NDArray[Any], dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: dict[str, F32Array], dtype: str = "F32") -> None:
    """Write one safetensors file from the format's description, without the library."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    n_bytes = 0
    for name, values in tensors.items():
        blobs.append(_stored(values, dtype))
        end_bytes = n_bytes + len(blobs[-1])
        offsets = [n_bytes, end_bytes]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        n_bytes = end_bytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"".join(blobs))


def make_checkpoint(
    path: Path,
    raw_config: dict[str, Any] | None = None,
    tensors: dict[str, F32Array] | None = None,
    dtype: str = "F32",
    n_shards: int = 1,
) -> dict[str, F32Array]:
    """Write config.json and the tensors, in one file or several; return the tensors."""
    raw_config = TINY_CONFIG if raw_config is None else raw_config
    tensors = random_tensors(raw_config) if tensors is None else tensors
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(raw_config))
    if n_shards == 1:
        write_safetensors(path / "model.safetensors", tensors, dtype)
        return tensors
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for shard in range(n_shards):
        file_name = f"model-{shard + 1:05}-of-{n_shards:05}.safetensors"
        mine = names[shard::n_shards]
        write_safetensors(path / file_name, {name: tensors[name] for name in mine}, dtype)
        weight_map.update(dict.fromkeys(mine, file_name))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors
