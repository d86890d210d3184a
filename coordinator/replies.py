"""What members answer, checked against what they were asked: arrays, candidates, logits.

Replies carry no row table; their seq says what they answer. Views into the inbox are valid until
the next exchange.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from agent.frames import HEADER_BYTES, FrameType, Wire
from agent.share import AtomRange, indices
from agent.vocab_payload import SamplerRow, TopRow, read_top_rows
from coordinator.hot_link import HotLink, Reply
from coordinator.plan import Plan
from kernels.errors import RemoteError
from kernels.layout import VOCAB_ROWS_PER_ATOM, Geometry

__all__ = ["ReplyReader", "WrongNumberError"]

F32 = npt.NDArray[np.float32]


class WrongNumberError(Exception):
    """Numbers that cannot be right, perhaps only because f16 overflowed.

    Attributes:
        agent: name of the agent that sent the last of them.
        dispatch: index of the dispatch whose partial sum it was; None for others.
        member: the agent's place among those asked.
    """

    def __init__(self, text: str, agent: str, dispatch: int | None = None, member: int = 0) -> None:
        super().__init__(text)
        self.agent = agent
        self.dispatch = dispatch
        self.member = member


class ReplyReader:
    """Reads the replies of one plan's members.

    Args:
        link: whose inbox the replies lie in.
        plan: the plan in force.
        geometry: the model's shapes.
    """

    def __init__(self, link: HotLink, plan: Plan, geometry: Geometry) -> None:
        self._slots = [row.data for row in link.inbox]
        self._geometry = geometry
        self._names = [m.agent for m in plan.members]
        self._vocab_ids = [_token_ids(m.vocab, geometry) for m in plan.members]

    def check(self, replies: Sequence[Reply], kind: FrameType, wire: Wire, n_bytes: int) -> None:
        """Check that every reply has the type, wire and payload size that was asked for.

        Raises:
            RemoteError: one has not; names the agent.
        """
        for header, _ in replies:
            if (
                header.type is not kind
                or header.wire is not wire
                or header.payload_bytes != n_bytes
                or header.n_rows
            ):
                raise RemoteError(
                    f"agent {self._names[header.rank]!r} answered {header.type.name} with "
                    f"{header.n_rows} rows and {header.payload_bytes} bytes where {kind.name} "
                    f"of {n_bytes} bytes was asked for; use one headwise release on all boards"
                )

    def payload(self, reply: Reply) -> memoryview:
        """Return the payload of a reply."""
        return self._slots[reply.slot][HEADER_BYTES : HEADER_BYTES + reply.header.payload_bytes]

    def name(self, rank: int) -> str:
        """Return the name of a member's agent."""
        return self._names[rank]

    def non_finite(self, rank: int, where: str) -> WrongNumberError:
        """Return the error that a member's numbers in `where` are not finite."""
        name = self._names[rank]
        return WrongNumberError(f"agent {name!r} sent inf or NaN in {where}", name)

    def answer(
        self, replies: Sequence[Reply], samplers: Sequence[SamplerRow]
    ) -> list[list[TopRow]] | F32:
        """Return what `logits` or `tops` do, as the samplers ask; nothing if there are none.

        Raises:
            WrongNumberError: as by those.
            RemoteError: as by those.
        """
        if not samplers:
            return []
        read = self.logits if samplers[0].full_logits else self.tops
        return read(replies, len(samplers))

    def tops(self, replies: Sequence[Reply], n_rows: int) -> list[list[TopRow]]:
        """Return each vocab row's candidates from all holders, in rank order.

        Raises:
            WrongNumberError: a log-sum-exp is not finite.
            RemoteError: a reply of another kind.
        """
        by_rank = []
        for reply in replies:
            self.check([reply], FrameType.TOP, reply.header.wire, reply.header.payload_bytes)
            # A copy: candidates outlive the exchange.
            top = read_top_rows(bytes(self.payload(reply)), n_rows)
            if not all([math.isfinite(t.log_sum_exp) for t in top]):
                raise self.non_finite(reply.header.rank, "the logits")
            by_rank.append(top)
        return [list(tops) for tops in zip(*by_rank, strict=True)]

    def logits(self, replies: Sequence[Reply], n_rows: int) -> F32:
        """Return all logits, (n_rows, V) float32.

        Raises:
            WrongNumberError: one is not finite.
            RemoteError: a reply of another kind.
        """
        logits = np.empty((n_rows, self._geometry.vocab_size), np.float32)
        for reply in replies:
            rank = reply.header.rank
            ids = self._vocab_ids[rank]
            self.check([reply], FrameType.LOGITS, reply.header.wire, 4 * n_rows * len(ids))
            part = np.frombuffer(self.payload(reply), np.float32).reshape(n_rows, len(ids))
            if not np.isfinite(part).all():
                raise self.non_finite(rank, "the logits")
            logits[:, ids] = part
        return logits


def _token_ids(vocab: tuple[AtomRange, ...], geometry: Geometry) -> npt.NDArray[np.int64]:
    """Return the token ids of a member's vocab rows in their order."""
    size = VOCAB_ROWS_PER_ATOM
    parts = [np.arange(i * size, min((i + 1) * size, geometry.vocab_size)) for i in indices(vocab)]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
