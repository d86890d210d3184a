"""The last phase on a board: logits of this member's vocab rows, penalised, and the best of them.

Writes TOP and LOGITS payloads (`vocab_payload`) into the outgoing frame. Which token wins is the
coordinator's business.
"""

import numpy as np
import numpy.typing as npt

from agent.frames import HEADER_BYTES, MAX_FRAME_BYTES, FrameType
from agent.member import Member
from agent.vocab_payload import (
    MAX_PENALISED,
    TOP_CANDIDATES,
    SamplerRow,
    TopRow,
    pack_top_rows,
)
from kernels.errors import WireError
from kernels.vocab import log_sum_exp, penalise, top_candidates

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

    def answer(self, x: F32, samplers: list[SamplerRow]) -> tuple[FrameType, int]:
        """Write the payload that answers rows x, (len(samplers), D), into the outbox.

        Returns:
            The frame's type and the payload's size in bytes.
        """
        if samplers[0].full_logits:
            return FrameType.LOGITS, self._full(x, samplers)
        logits = self._logits[: len(samplers)]
        self._kernels.logits(x, logits)
        tops = [self._top(row, sampler) for row, sampler in zip(logits, samplers, strict=True)]
        payload = pack_top_rows(tops)
        self._outbox_bytes[HEADER_BYTES : HEADER_BYTES + len(payload)] = payload
        return FrameType.TOP, len(payload)

    def _full(self, x: F32, samplers: list[SamplerRow]) -> int:
        n_bytes = 4 * len(samplers) * len(self._ids)
        raw = self._outbox[HEADER_BYTES : HEADER_BYTES + n_bytes]
        logits = raw.view(np.float32).reshape(len(samplers), len(self._ids))
        self._kernels.logits(x, logits)
        for row, sampler in zip(logits, samplers, strict=True):
            self._penalise(row, sampler)
        return n_bytes

    def _top(self, logits: F32, sampler: SamplerRow) -> TopRow:
        """Return one row's candidates; `logits` is penalised in place."""
        self._penalise(logits, sampler)
        total = log_sum_exp(logits, float(sampler.temperature or 1.0))
        ids, best = self._top_ids, self._top_logits
        n = top_candidates(logits, self._ids, TOP_CANDIDATES, ids, best)
        return TopRow(total, ids[:n].copy(), best[:n].copy())

    def _penalise(self, logits: F32, sampler: SamplerRow) -> None:
        n_ids = len(sampler.penalised_ids)
        if n_ids and sampler.penalty != 1.0:
            # Copied: the wire's ids need not be aligned, and kernels take one kind of array.
            ids = self._penalised[:n_ids]
            ids[:] = sampler.penalised_ids
            penalise(logits, self._first_ids, self._n_rows, ids, float(sampler.penalty))
