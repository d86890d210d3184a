"""Writing one text: prefill in chunks, then a token at a time.

Holds the only copy of what a context needs to be rebuilt elsewhere: its token ids. When a board is
lost, the tokens so far are carried once more, by whoever is left, and the text goes on. Does not
know members or plans: `texts` carries rows, `sampling` chooses, `stops` watches the text.
"""

import time
from collections.abc import Callable, Generator, Sequence

import numpy as np
import numpy.typing as npt

from agent.vocab_payload import SamplerRow
from coordinator.results import Result, Timings, Token
from coordinator.rows import StepTimes
from coordinator.sampling import (
    NEED_FULL_LOGITS,
    SamplingOptions,
    best_of,
    choose,
    choose_from_logits,
    merge,
    uniform,
)
from coordinator.stops import StopMatcher
from coordinator.texts import Answer, Text
from kernels.errors import AgentLostError, FaultyAgentError, PromptError
from weights.directory import ModelDirectory
from weights.tokenizer import Tokenizer

__all__ = ["Writer"]

FIRST_CHUNK_ROWS = 8
# A phase of prefill stays under 300 ms, so that a member that stalls is noticed soon.
CHUNK_PHASE_S = 0.25


class Writer:
    """Everything that writing one text needs; `tokens` writes it.

    Args:
        text: a context that is not open yet.
        directory: the model, for embedding rows and special tokens.
        tokenizer: None for a model without one; texts are then empty.
        prompt_ids: at least one token.
        max_tokens: most tokens to generate.
        context_tokens: longest context the agents hold pages for.
        options: how to sample.
        stop: strings that end the text; they are not part of it.
        check: called before each chunk of the prompt; may raise to end the text.

    Raises:
        PromptError: an empty or too long prompt, an unknown token id, stop strings without a
            tokenizer.
    """

    def __init__(
        self,
        text: Text,
        directory: ModelDirectory,
        tokenizer: Tokenizer | None,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        context_tokens: int,
        options: SamplingOptions,
        stop: Sequence[str],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._text = text
        self._check = check
        self._directory = directory
        self._options = options
        self._ids = list(prompt_ids)
        self._n_prompt = len(self._ids)
        _check_prompt(self._ids, directory.config.vocab_size, context_tokens, max_tokens)
        if stop and tokenizer is None:
            raise PromptError("stop strings need a tokenizer, and this model has none")
        self._n_max = min(max_tokens, context_tokens - self._n_prompt)
        config = directory.config
        # A model that writes BOS begins another document: this one has ended (as in llama2.c).
        self._ends = {*config.eos_ids, *(tokenizer.eos_ids if tokenizer else ())}
        if config.bos_id is not None:
            self._ends.add(config.bos_id)
        self._detokenizer = None if tokenizer is None else tokenizer.detokenizer(self._ids)
        self._stops = StopMatcher(list(stop))
        self._texts: list[str] = []
        self._finish_reason = ""
        self._prefill_s = self._decode_s = 0.0
        self._times = StepTimes()

    def result(self) -> Result:
        """Return what was generated so far, complete once the iterator is exhausted."""
        n_new = len(self._ids) - self._n_prompt
        times = self._times
        total_s = max(times.kernels_s + times.exchange_s + times.coordinator_s, 1e-9)
        return Result(
            text="".join(self._texts),
            token_ids=self._ids[self._n_prompt :],
            prompt_token_ids=self._ids[: self._n_prompt],
            finish_reason=self._finish_reason or "cancelled",
            timings=Timings(
                prefill_s=self._prefill_s,
                decode_s=self._decode_s,
                time_to_first_token_s=self._prefill_s,
                prefill_tokens_per_s=self._n_prompt / max(self._prefill_s, 1e-9),
                decode_tokens_per_s=max(n_new - 1, 0) / max(self._decode_s, 1e-9),
                kernels_share=times.kernels_s / total_s,
                exchange_share=times.exchange_s / total_s,
                coordinator_share=times.coordinator_s / total_s,
                n_steps=times.n_steps,
                n_phases=times.n_dispatches,
            ),
        )

    def tokens(self) -> Generator[Token, None, None]:
        """Open a context, write the text, release the context; closing it early releases too."""
        n_reserve = self._n_prompt + self._n_max
        try:
            self._text.open(n_reserve)
            token = self._first()
            while token not in self._ends:
                self._ids.append(token)
                text = self._push(token)
                if not self._finish_reason and len(self._ids) - self._n_prompt >= self._n_max:
                    self._finish_reason = "length"
                    text += self._flush()
                yield Token(token, text)
                if self._finish_reason:
                    return
                token = self._next()
            self._finish_reason = "stop"
            rest = self._flush()
            if rest:
                yield Token(None, rest)
        finally:
            self._text.close()

    def _first(self) -> int:
        """Prefill the prompt in chunks and return the first token."""
        started_s = time.perf_counter()
        token = self._choose(self._carry(self._sampler()))
        self._prefill_s = time.perf_counter() - started_s
        return token

    def _next(self) -> int:
        """Feed the last token back and return the one after it."""
        started_s = time.perf_counter()
        token = self._choose(self._carry(self._sampler()))
        self._decode_s += time.perf_counter() - started_s
        return token

    def _carry(self, sampler: SamplerRow) -> Answer:
        """Carry what the members lack of the text, and return the answer for its last token.

        When one of them is lost, that is the whole text: the others carry it once more.
        """
        while True:
            try:
                return self._chunks(sampler)
            except (AgentLostError, FaultyAgentError) as e:
                self._text.reopen(e)

    def _chunks(self, sampler: SamplerRow) -> Answer:
        text, end, n_rows = self._text, len(self._ids), FIRST_CHUNK_ROWS
        # The last one is carried again where it has been: other things are asked about it.
        at = min(text.n_tokens, end - 1)
        while True:
            self._check()
            n_rows = min(n_rows, text.max_rows, end - at)
            last = at + n_rows == end
            self._times.longest_dispatch_s = 0.0
            x, samplers = self._embeddings(at, n_rows), [sampler] if last else []
            answer = text.step(x, at, samplers, self._times, prefill=not last)
            at += n_rows
            if last:
                return answer
            chunk_s = max(self._times.longest_dispatch_s, 1e-6)
            n_rows = max(1, int(n_rows * min(2.0, CHUNK_PHASE_S / chunk_s)))

    def _embeddings(self, first: int, n_rows: int) -> npt.NDArray[np.float32]:
        x = np.empty((n_rows, self._directory.config.hidden_size), np.float32)
        for i in range(n_rows):
            self._directory.embedding_row(self._ids[first + i], x[i])
        return x

    def _sampler(self, full_logits: bool = False) -> SamplerRow:
        """Return what the vocab holders need for the next token."""
        options = self._options
        row = SamplerRow(options.temperature, options.repeat_penalty, full_logits)
        if options.repeat_penalty == 1.0 or not options.repeat_last_n:
            return row
        recent = sorted(set(self._ids[-options.repeat_last_n :]))
        return row._replace(penalised_ids=np.array(recent, np.uint32))

    def _choose(self, answer: Answer) -> int:
        """Draw the next token; ask for all logits where the best candidates cannot decide."""
        assert not isinstance(answer, np.ndarray)
        if self._options.temperature == 0.0:
            return best_of(answer[0])
        u = uniform(self._options.seed, len(self._ids))
        token = choose(merge(answer[0]), self._options, u)
        if token == NEED_FULL_LOGITS:
            full = self._carry(self._sampler(full_logits=True))
            assert isinstance(full, np.ndarray)
            token = choose_from_logits(full[0], self._options, u)
        return token

    def _push(self, token: int) -> str:
        """Return the text that became certain with this token; note a stop string."""
        if self._detokenizer is None:
            return ""
        text, matched = self._stops.push(self._detokenizer.push(token))
        if matched:
            self._finish_reason = "stop"
        self._texts.append(text)
        return text

    def _flush(self) -> str:
        """Return the text that had waited for more, at the end."""
        if self._detokenizer is None:
            return ""
        text, matched = self._stops.push(self._detokenizer.flush())
        text += "" if matched else self._stops.flush()
        if matched:
            self._finish_reason = "stop"
        self._texts.append(text)
        return text


def _check_prompt(ids: list[int], vocab_size: int, context_tokens: int, max_tokens: int) -> None:
    if not ids:
        raise PromptError("the prompt has no tokens; give at least one (BOS for an empty text)")
    wrong = [i for i in ids if not 0 <= i < vocab_size]
    if wrong:
        raise PromptError(f"prompt token {wrong[0]} is outside the vocabulary of {vocab_size}")
    if max_tokens < 1:
        raise PromptError(f"max tokens is {max_tokens}; ask for at least 1")
    if len(ids) >= context_tokens:
        raise PromptError(
            f"the prompt has {len(ids)} tokens but the context holds {context_tokens}, and at "
            f"least one is generated; shorten the prompt or raise --ctx"
        )
