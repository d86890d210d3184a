"""The phases of one step on the side of the residual's holder, as Python sees them.

`walk_phases` sends, gathers and adds; this file tells it what to send and where to, and what it
stumbled over.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.frames import HEADER_BYTES, FrameType, Header, Wire, pack_header
from agent.ids import Seq
from agent.samples import Samples
from coordinator.schedule import Dispatch
from coordinator.walk_phases import (
    ERROR,
    FRAME_BYTES,
    HAS_MORE,
    KERNELS_NS,
    LONGEST_NS,
    MAX_ROUTE_BYTES,
    N_WORDS,
    NOT_ASKED,
    RANK,
    RANKS,
    ROUTE_BYTES,
    STARTED_NS,
    WHY,
    Stop,
    walk_phases,
)
from coordinator.workspace import Workspace

__all__ = ["MAX_SEQ", "PhaseWalk", "Walked"]

U8Array = npt.NDArray[np.uint8]
I64Array = npt.NDArray[np.int64]

MAX_SEQ = 0xFFFFFFFF


class Walked(NamedTuple):
    """Where a walk ended and why.

    Attributes:
        dispatch: index of the dispatch that was under way, or the end of the walk.
        seq: number of its frame.
        started_s: monotonic time when it was sent.
        why: the reason.
        rank: of the member, for UNSENT; for WRONG its place among those asked.
        error: errno, for UNSENT.
        route: of the ODD_FRAME's sender.
        reply_bytes: size of an ordinary reply.
        frame_bytes: of the ODD_FRAME, which is in the inbox row after those in use.
        more: whether the ODD_FRAME's message has further parts, not yet received.
    """

    dispatch: int
    seq: Seq
    started_s: float
    why: Stop
    rank: int
    error: int
    route: bytes
    reply_bytes: int
    frame_bytes: int
    more: bool


class PhaseWalk:
    """Walks one plan's half layers.

    Args:
        calls: of `agent.zmq_calls.find_calls`.
        socket: address of the hot ROUTER.
        routes: of the members, in rank order.
        schedule: of the plan.
        inbox: (n_members + 1, capacity) uint8, written: one reply in each row, in order of arrival.
        limits: (len(schedule), n_members) float32, the largest magnitude that the partial sums of
            each member asked may have, in the order of the dispatch's ranks; may be changed.
        trips: gets rank and bytes (see `walk_phases`) and time under way of each reply.

    Attributes:
        slots: (n_members,) int32, the inbox row of each member's reply to the last dispatch,
            negative where there is none.
    """

    def __init__(
        self,
        calls: I64Array,
        socket: int,
        routes: Sequence[bytes],
        schedule: Sequence[Dispatch],
        inbox: U8Array,
        limits: npt.NDArray[np.float32],
        trips: Samples,
    ) -> None:
        n_members = len(routes)
        self.slots = np.full(n_members, NOT_ASKED, np.int32)
        self._words = np.zeros(N_WORDS, np.int64)
        self._route = np.zeros(MAX_ROUTE_BYTES, np.uint8)
        self._expected = np.zeros(HEADER_BYTES, np.uint8)
        table = np.zeros((len(schedule), RANKS + n_members), np.int32)
        for row, dispatch in zip(table, schedule, strict=True):
            n = len(dispatch.ranks)
            row[: RANKS + n] = [dispatch.layer, dispatch.phase, n, *dispatch.ranks]
        padded = [np.frombuffer(r.ljust(MAX_ROUTE_BYTES, b"\0"), np.uint8) for r in routes]
        sizes = np.array([len(r) for r in routes], np.int64)
        self._fixed = (
            calls, socket, table, np.concatenate(padded), sizes, inbox.reshape(-1),
            inbox.view(np.uint16), inbox.view(np.float32), self._expected, self._route,
            self.slots, np.zeros(n_members, np.int32), limits, self._words, trips.ring,
        )  # fmt: skip
        self._step: Any = ()
        self._reply_bytes = 0

    def begin(self, work: Workspace, wire: Wire, header: Header) -> None:
        """Say which step is walked: its residual and frame, whose header and rows are packed.

        Args:
            work: the buffers of the step.
            wire: of the frames to send.
            header: the request's; seq, layer and phase are of no account.
        """
        reply = Header(
            FrameType.PARTIAL, wire, header.epoch, header.run_id, Seq(0),
            payload_bytes=work.payload[wire].nbytes,
        )  # fmt: skip
        pack_header(self._expected.data, reply)
        self._reply_bytes = HEADER_BYTES + reply.payload_bytes
        payload = work.payload[wire]
        halves = payload if wire is Wire.F16 else np.empty(0, np.uint16)
        floats = payload if wire is Wire.F32 else np.empty(0, np.float32)
        self._step = (work.frame_arrays[wire], work.flat, halves, floats)

    def walk(self, first: int, stop: int, seq: Seq) -> Walked:
        """Carry out the dispatches first .. stop - 1, all of them half layers.

        Args:
            first: index into the schedule.
            stop: index after the last one.
            seq: number of the first one's frame; the others count on.
        """
        args: tuple[Any, ...] = (*self._fixed, *self._step, first, stop, seq)
        at = walk_phases(*args)
        words = self._words.tolist()
        return Walked(
            dispatch=at,
            seq=Seq((seq + at - first) & MAX_SEQ),
            started_s=1e-9 * words[STARTED_NS],
            why=Stop(words[WHY]),
            rank=words[RANK],
            error=words[ERROR],
            route=self._route[: min(words[ROUTE_BYTES], MAX_ROUTE_BYTES)].tobytes(),
            reply_bytes=self._reply_bytes,
            frame_bytes=words[FRAME_BYTES],
            more=bool(words[HAS_MORE]),
        )

    def take_times_s(self) -> tuple[float, float, float]:
        """Return and forget the seconds in kernels and exchange, and of the longest dispatch."""
        kernels, exchange, longest = 1e-9 * self._words[KERNELS_NS : LONGEST_NS + 1]
        self._words[KERNELS_NS : LONGEST_NS + 1] = 0
        return float(kernels), float(exchange), float(longest)
