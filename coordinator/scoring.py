"""All logits of a given text: what comparisons of placements need."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from agent.ids import KvId
from agent.kv_ops import KvOp, KvOpCode
from agent.vocab_payload import SamplerRow
from coordinator.engine import Engine, Rows
from weights.directory import ModelDirectory

__all__ = ["all_logits"]


def all_logits(
    engine: Engine,
    directory: ModelDirectory,
    token_ids: Sequence[int],
    kv_id: KvId,
    chunk_rows: int,
) -> npt.NDArray[np.float32]:
    """Return the logits after each token of a text, (n_tokens, V) float32.

    Args:
        engine: carries rows through the plan in force.
        directory: the model, for embedding rows.
        token_ids: at least one, and no more than a context holds.
        kv_id: a context number that is not in use.
        chunk_rows: tokens a step.
    """
    n_tokens, config = len(token_ids), directory.config
    out = np.empty((n_tokens, config.vocab_size), np.float32)
    engine.control_kv([KvOp(KvOpCode.OPEN, kv_id, n_tokens)])
    try:
        for first in range(0, n_tokens, chunk_rows):
            ids = token_ids[first : first + chunk_rows]
            x = np.empty((len(ids), config.hidden_size), np.float32)
            for row, token_id in zip(x, ids, strict=True):
                directory.embedding_row(token_id, row)
            rows = Rows([kv_id] * len(ids), list(range(first, first + len(ids))))
            samplers = [SamplerRow(full_logits=True)] * len(ids)
            out[first : first + len(ids)] = engine.step(x, rows, samplers)
    finally:
        engine.control_kv([KvOp(KvOpCode.RELEASE, kv_id)])
    return out
