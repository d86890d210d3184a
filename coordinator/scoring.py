"""All logits of a given text: what comparisons of placements need."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from agent.vocab_payload import SamplerRow
from coordinator.texts import Text
from kernels.errors import AgentLostError, FaultyAgentError
from weights.directory import ModelDirectory

__all__ = ["all_logits"]


def all_logits(
    text: Text,
    directory: ModelDirectory,
    token_ids: Sequence[int],
    chunk_rows: int,
) -> npt.NDArray[np.float32]:
    """Return the logits after each token of a text, (n_tokens, V) float32.

    Args:
        text: a context that is not open yet.
        directory: the model, for embedding rows.
        token_ids: at least one, and no more than a context holds.
        chunk_rows: tokens a step.

    Raises:
        RemoteError: a member was lost, and the others cannot hold the model.
    """
    n_tokens, config = len(token_ids), directory.config
    out = np.empty((n_tokens, config.vocab_size), np.float32)
    text.open(n_tokens)
    try:
        first = 0
        while first < n_tokens:
            ids = token_ids[first : first + chunk_rows]
            x = np.empty((len(ids), config.hidden_size), np.float32)
            for row, token_id in zip(x, ids, strict=True):
                directory.embedding_row(token_id, row)
            samplers = [SamplerRow(full_logits=True)] * len(ids)
            try:
                out[first : first + len(ids)] = text.step(x, first, samplers)
            except (AgentLostError, FaultyAgentError) as e:
                text.reopen(e)
                # The rows were lost with the plan: whoever is left carries them once more.
                first = min(first, text.n_tokens)
            else:
                first += len(ids)
    finally:
        text.close()
    return out
