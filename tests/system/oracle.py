"""What a converted model must answer: its atoms put together again, through the float64 oracle."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tests.naive import NaiveLayer, NaiveModel, forward
from tests.unit.reassembled import Reassembled
from weights.directory import ModelDirectory
from weights.families import TensorNames

__all__ = ["oracle_logits", "oracle_model"]

F64 = npt.NDArray[np.float64]


def oracle_model(directory: ModelDirectory, kv_dtype: type = np.float64) -> NaiveModel:
    """Return plain float64 matrices that hold exactly what the atoms hold."""
    config, g = directory.config, directory.geometry
    tensors = {k: v.astype(np.float64) for k, v in Reassembled(directory).tensors().items()}
    names = TensorNames(config)
    no_bias = {
        "q_bias": np.zeros(g.n_heads * g.head_dim),
        "k_bias": np.zeros(g.n_kv_heads * g.head_dim),
        "v_bias": np.zeros(g.n_kv_heads * g.head_dim),
    }
    layers = []
    for i in range(g.n_layers):
        found = {field: tensors[name] for field, name in names.layer(i)._asdict().items() if name}
        layers.append(NaiveLayer(**{**no_bias, **found}))
    return NaiveModel(
        g,
        layers,
        tensors[names.final_norm],
        tensors[names.lm_head],
        config.inv_freq(),
        kv_dtype=kv_dtype,
    )


def oracle_logits(model: NaiveModel, directory: ModelDirectory, token_ids: Sequence[int]) -> F64:
    """Return the logits after each token of a text, (n_tokens, V)."""
    x = np.empty((len(token_ids), directory.geometry.hidden_size), np.float32)
    for row, token_id in zip(x, token_ids, strict=True):
        directory.embedding_row(int(token_id), row)
    return forward(model, x.astype(np.float64))[1]
