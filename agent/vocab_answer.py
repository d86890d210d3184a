"""The last phase on a board: logits of this member's vocab rows, penalised, and the best of them.

Writes TOP and LOGITS payloads (`vocab_payload`) into the outgoing frame. Which token wins is the
coordinator's business.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.frames import HEADER_BYTES, MAX_FRAME_BYTES, FrameType
from agent.member import Member
from agent.vocab_payload import (
    MAX_PENALISED,
    TOP_CANDIDATES,
    TOP_HEAD_BYTES,
    SamplerRow,
    TopRow,
    pack_top_rows,
)
from kernels.entries import penalise, top_of_row
from kernels.entry import Bound
from kernels.errors import WireError

__all__ = ["VocabAnswer"]

F32 = npt.NDArray[np.float32]


class VocabAnswer:
    """Answers vocab rows for one member.

    Args:
        member: whose vocab atoms; it may hold none, then nothing may be asked.
        outbox: (MAX_FRAME_BYTES,) uint8, the frame that goes out.
    """

    def __init__(self, member: Member, outbox: npt.NDArray[np.uint8]) -> None:
        self._kernels = member.kernels
        self._ids = member.vocab_ids
        self._first_ids = member.vocab_first_ids
        self._n_rows = member.vocab_n_rows
        self._outbox = outbox
        self._outbox_bytes = outbox.data
        # Touched, and so resident, only as far as rows are asked for; normally that is one.
        self._logits = np.empty((member.assignment.max_rows, len(self._ids)), np.float32)
        self._penalised = np.zeros(MAX_PENALISED, np.uint32)
        self._top_ids = np.zeros(TOP_CANDIDATES, np.uint32)
        self._top_logits = np.zeros(TOP_CANDIDATES, np.float32)
        self._total = np.zeros(1, np.float64)
        # The row of a token that is written alone, and its call: arguments are encoded once.
        self._row = self._logits[0]
        self._temperature, self._best_of_row = 1.0, self._bind_row(1.0)

    def check(self, samplers: list[SamplerRow]) -> None:
        """Raise WireError for rows that one frame cannot answer."""
        n_full = sum(s.full_logits for s in samplers)
        if n_full not in (0, len(samplers)):
            raise WireError("rows with and without full logits in one frame; send two")
        n_bytes = HEADER_BYTES + 4 * n_full * len(self._ids)
        if n_bytes > MAX_FRAME_BYTES:
            raise WireError(
                f"full logits of {n_full} rows take a frame of {n_bytes} bytes; at most "
                f"{MAX_FRAME_BYTES} are possible: ask for fewer rows at once"
            )

    def answer(
        self, x: F32, samplers: list[SamplerRow], layers_first: bool = False
    ) -> tuple[FrameType, int]:
        """Write the payload that answers rows x, (len(samplers), D), into the outbox.

        Args:
            x: residuals; those that the stage begins with, replaced, if layers_first.
            samplers: what each row asks for.
            layers_first: whether the rows go through all layers of the stage before.

        Returns:
            The frame's type and the payload's size in bytes.
        """
        run = self._kernels.run_all if layers_first else self._kernels.logits
        if samplers[0].full_logits:
            return FrameType.LOGITS, self._full(x, samplers, run)
        logits = self._logits[: len(samplers)]
        run(x, logits)
        if len(samplers) == 1:
            tops = [self._top_of_row(samplers[0])]
        else:
            tops = [self._top(row, sampler) for row, sampler in zip(logits, samplers, strict=True)]
        payload = pack_top_rows(tops)
        self._outbox_bytes[HEADER_BYTES : HEADER_BYTES + len(payload)] = payload
        return FrameType.TOP, len(payload)

    def _full(self, x: F32, samplers: list[SamplerRow], run: Callable[[F32, F32], None]) -> int:
        n_bytes = 4 * len(samplers) * len(self._ids)
        raw = self._outbox[HEADER_BYTES : HEADER_BYTES + n_bytes]
        logits = raw.view(np.float32).reshape(len(samplers), len(self._ids))
        run(x, logits)
        for row, sampler in zip(logits, samplers, strict=True):
            self._penalise(row, sampler)
        return n_bytes

    def row_call(self, sampler: SamplerRow, n: int) -> tuple[int, tuple[Any, ...]]:
        """Return the address and arguments with which compiled code answers a row like the last.

        It writes sum and candidates into the outbox, where those of the last answer are, and
        returns how many candidates there are: n, if enough logits are numbers.

        Args:
            sampler: of that row; without penalties.
            n: how many candidates there are, see `n_wanted`; 0 where nothing is asked.
        """
        start = HEADER_BYTES + TOP_HEAD_BYTES
        total = self._outbox[HEADER_BYTES : HEADER_BYTES + 8].view(np.float64)
        ids = self._outbox[start : start + 4 * n].view(np.uint32)
        logits = self._outbox[start + 4 * n : start + 8 * n].view(np.float32)
        row, row_ids = (self._row, self._ids) if n else (self._row[:0], self._ids[:0])
        args = (row, row_ids, n, _temperature(sampler), total, ids, logits)
        top_of_row(*args)  # compiles if need be
        return top_of_row.address(args), args

    def n_wanted(self, sampler: SamplerRow) -> int:
        """Return how many candidates the answer to a row has, if its logits are numbers."""
        return min(_n_wanted(sampler), len(self._ids))

    @property
    def row(self) -> F32:
        """Logits of the only row, (1, n_local_rows)."""
        return self._logits[:1]

    def _top(self, logits: F32, sampler: SamplerRow) -> TopRow:
        """Return one row's candidates; `logits` is penalised in place."""
        self._penalise(logits, sampler)
        n = top_of_row(*self._top_args(logits, _n_wanted(sampler), _temperature(sampler)))
        return self._candidates(n)

    def _top_of_row(self, sampler: SamplerRow) -> TopRow:
        """Do the same for the only row."""
        self._penalise(self._row, sampler)
        temperature = _temperature(sampler)
        if temperature != self._temperature:
            self._temperature, self._best_of_row = temperature, self._bind_row(temperature)
        return self._candidates(self._best_of_row(_n_wanted(sampler)))

    def _bind_row(self, temperature: float) -> Bound:
        return top_of_row.bind(self._top_args(self._row, 1, temperature), 2, 1)

    def _top_args(self, logits: F32, n: int, temperature: float) -> tuple[Any, ...]:
        return logits, self._ids, n, temperature, self._total, self._top_ids, self._top_logits

    def _candidates(self, n: int) -> TopRow:
        return TopRow(float(self._total[0]), self._top_ids[:n].copy(), self._top_logits[:n].copy())

    def _penalise(self, logits: F32, sampler: SamplerRow) -> None:
        n_ids = len(sampler.penalised_ids)
        if n_ids and sampler.penalty != 1.0:
            # Copied: the wire's ids need not be aligned, and kernels take one kind of array.
            ids = self._penalised[:n_ids]
            ids[:] = sampler.penalised_ids
            penalise(logits, self._first_ids, self._n_rows, ids, float(sampler.penalty))


def _n_wanted(sampler: SamplerRow) -> int:
    """Return how many candidates a row asks for: a greedy one, only the best."""
    return TOP_CANDIDATES if sampler.temperature else 1


def _temperature(sampler: SamplerRow) -> float:
    """Return the temperature of a row's sum: a greedy one's is 1."""
    return float(sampler.temperature or 1.0)
