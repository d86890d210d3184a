"""All logits of a text, whatever is lost on the way."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from coordinator.scoring import all_logits
from kernels.errors import AgentLostError, FaultyAgentError, RemoteError

VOCAB, TOKENS, CHUNK = 7, 10, 4


class Directory:
    """Embeds a token as its id."""

    config = SimpleNamespace(vocab_size=VOCAB, hidden_size=2)

    def embedding_row(self, token_id: int, out: npt.NDArray[np.float32]) -> None:
        out[:] = token_id


class ScriptedText:
    """Carries rows, if all before them were carried; the steps named by `losses` raise."""

    def __init__(self, losses: dict[int, RemoteError], kept_tokens: int = 0) -> None:
        self.losses, self.kept_tokens = losses, kept_tokens
        self.n_tokens = self.n_steps = 0
        self.reopened: list[RemoteError] = []
        self.is_open = False

    def open(self, n_tokens: int) -> None:
        self.is_open = True
        assert n_tokens == TOKENS

    def step(self, x: npt.NDArray[np.float32], first: int, samplers: Sequence[object]) -> Any:
        self.n_steps += 1
        error = self.losses.get(self.n_steps)
        if error is not None:
            raise error
        assert first <= self.n_tokens
        assert len(samplers) == len(x)
        self.n_tokens = first + len(x)
        return x[:, :1] * np.arange(VOCAB, dtype=np.float32)

    def reopen(self, why: RemoteError) -> None:
        self.reopened.append(why)
        self.n_tokens = self.kept_tokens

    def close(self) -> None:
        self.is_open = False


def scored(text: ScriptedText) -> npt.NDArray[np.float32]:
    fake: Any = text
    directory: Any = Directory()
    return all_logits(fake, directory, range(1, TOKENS + 1), CHUNK)


WANTED = np.outer(np.arange(1, TOKENS + 1), np.arange(VOCAB)).astype(np.float32)


@pytest.mark.parametrize("error", [AgentLostError("gone", "a"), FaultyAgentError("NaN", "a")])
@pytest.mark.parametrize("kept_tokens", [0, 4, 6])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_loss_on_the_way_changes_no_logit(error: RemoteError, kept_tokens: int, at: int) -> None:
    text = ScriptedText({at: error}, min(kept_tokens, CHUNK * (at - 1)))
    assert np.array_equal(scored(text), WANTED)
    assert text.reopened == [error]
    assert not text.is_open


def test_what_is_no_loss_ends_it() -> None:
    text = ScriptedText({2: RemoteError("out of order")})
    with pytest.raises(RemoteError, match="out of order"):
        scored(text)
    assert text.reopened == []
    assert not text.is_open
