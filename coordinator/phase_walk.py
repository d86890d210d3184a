"""The phases of one step on the side of the residual's holder, compiled: no Python between them.

    for each half layer of the schedule:
        frame   = residual as f16 or f32, with the number of this dispatch, layer and phase
        send it to every member that has atoms here; receive one reply from each
        residual += partial of each member                              in rank order

As long as every member answers as asked, this is all that happens between two kernels. The first
thing that is not ordinary (silence, an ERROR, a frame of another run, a closed link, a number that
cannot be right) ends the walk in the middle of its dispatch; Python (`hot_link`, `engine`) deals
with it, finishes the dispatch and may walk on from the next.
"""

import errno
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.frames import (
    BUSY_BYTE,
    HEADER_BYTES,
    LAYER_BYTE,
    PHASE_BYTE,
    RANK_BYTE,
    SEQ_BYTE,
    FrameType,
    Header,
    Wire,
    pack_header,
)
from agent.ids import Seq
from agent.native import DONT_WAIT, MORE, has_more, now_ns, receive, send
from coordinator.schedule import Dispatch
from coordinator.workspace import Workspace
from kernels.exchange import add_partials, encode_flat
from kernels.jit import inner, kernel

__all__ = ["MAX_ROUTE_BYTES", "PhaseWalk", "Stop", "Walked"]

U8Array = npt.NDArray[np.uint8]
I32Array = npt.NDArray[np.int32]
I64Array = npt.NDArray[np.int64]

MAX_ROUTE_BYTES = 256
MAX_SEQ = 0xFFFFFFFF
_EINTR = errno.EINTR
_NOT_ASKED, _ASKED = -2, -1

# Columns of the schedule table: layer, phase, number of ranks, ranks.
_LAYER, _PHASE, _N_RANKS, _RANKS = range(4)
# Words that the walk leaves behind: where and why it stopped, and sums of times.
_WHY, _RANK, _ERROR, _ROUTE_BYTES, _FRAME_BYTES, _MORE, _N_GOT = range(7)
_STARTED_NS, _KERNELS_NS, _EXCHANGE_NS, _LONGEST_NS, _N_WORDS = range(7, 12)


class Stop(IntEnum):
    """Why a walk ended."""

    DONE = 0  # all dispatches are carried out
    SILENCE = 1  # nothing came within the socket's time
    ODD_FRAME = 2  # a frame came that Python has to look at
    UNSENT = 3  # the link to a member takes nothing
    WRONG = 4  # all replies are in, but one has NaN or a number beyond its limit, or its sum inf


# Plain numbers for compiled code.
_DONE, _SILENCE, _ODD_FRAME, _UNSENT, _WRONG = (int(why) for why in Stop)


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
        calls: of `agent.native.find_calls`.
        socket: address of the hot ROUTER.
        routes: of the members, in rank order.
        schedule: of the plan.
        inbox: (n_members + 1, capacity) uint8, written: one reply in each row, in order of arrival.
        limits: (len(schedule), n_members) float32, the largest magnitude that the partial sums of
            each member asked may have, in the order of the dispatch's ranks; may be changed.

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
    ) -> None:
        n_members = len(routes)
        self.slots = np.full(n_members, _NOT_ASKED, np.int32)
        self._words = np.zeros(_N_WORDS, np.int64)
        self._route = np.zeros(MAX_ROUTE_BYTES, np.uint8)
        self._expected = np.zeros(HEADER_BYTES, np.uint8)
        table = np.zeros((len(schedule), _RANKS + n_members), np.int32)
        for row, dispatch in zip(table, schedule, strict=True):
            n = len(dispatch.ranks)
            row[: _RANKS + n] = [dispatch.layer, dispatch.phase, n, *dispatch.ranks]
        padded = [np.frombuffer(r.ljust(MAX_ROUTE_BYTES, b"\0"), np.uint8) for r in routes]
        sizes = np.array([len(r) for r in routes], np.int64)
        self._fixed = (
            calls, socket, table, np.concatenate(padded), sizes, inbox.reshape(-1),
            inbox.view(np.uint16), inbox.view(np.float32), self._expected, self._route,
            self.slots, np.zeros(n_members, np.int32), limits, self._words,
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
            started_s=1e-9 * words[_STARTED_NS],
            why=Stop(words[_WHY]),
            rank=words[_RANK],
            error=words[_ERROR],
            route=self._route[: min(words[_ROUTE_BYTES], MAX_ROUTE_BYTES)].tobytes(),
            reply_bytes=self._reply_bytes,
            frame_bytes=words[_FRAME_BYTES],
            more=bool(words[_MORE]),
        )

    def take_times_s(self) -> tuple[float, float, float]:
        """Return and forget the seconds in kernels and exchange, and of the longest dispatch."""
        kernels, exchange, longest = 1e-9 * self._words[_KERNELS_NS : _LONGEST_NS + 1]
        self._words[_KERNELS_NS : _LONGEST_NS + 1] = 0
        return float(kernels), float(exchange), float(longest)


@kernel
def walk_phases(
    calls: I64Array,
    socket: int,
    schedule: I32Array,
    routes: U8Array,
    route_sizes: I64Array,
    inbox: U8Array,
    inbox_f16: npt.NDArray[np.uint16],
    inbox_f32: npt.NDArray[np.float32],
    expected: U8Array,
    route: U8Array,
    slots: I32Array,
    order: I32Array,
    limits: npt.NDArray[np.float32],
    words: I64Array,
    frame: U8Array,
    residual: npt.NDArray[np.float32],
    payload_f16: npt.NDArray[np.uint16],
    payload_f32: npt.NDArray[np.float32],
    first: int,
    stop: int,
    seq: int,
) -> int:
    """Carry out dispatches first .. stop - 1; return the one that it could not finish, or `stop`.

    `frame` is the request and `residual` (n,) is read and written. The frame's payload is
    `payload_f16` or `payload_f32`, (n,) each; the other one is empty. `expected` is the header of
    an ordinary reply, of which seq, layer and phase are written here, rank and busy time ignored.
    The three inboxes are views of the same rows. For the rest see `PhaseWalk`.
    """
    row_bytes = inbox_f32.shape[1] * 4
    for at in range(first, stop):
        row = schedule[at]
        ranks = row[_RANKS : _RANKS + row[_N_RANKS]]
        if payload_f16.size > 0:
            encode_flat(residual, payload_f16)
        else:
            for i in range(residual.size):  # a slice assignment would allocate
                payload_f32[i] = residual[i]
        _write_request(frame, expected, seq + at - first, row[_LAYER], row[_PHASE])
        words[_STARTED_NS] = now_ns()
        words[_WHY] = _send_all(calls, socket, routes, route_sizes, ranks, frame, slots, words)
        if words[_WHY] == _DONE:
            words[_WHY] = _gather(
                calls, socket, routes, route_sizes, ranks.size, inbox, row_bytes, expected, route,
                slots, words,
            )  # fmt: skip
        if words[_WHY] != _DONE:
            return at
        _add_times(words, now_ns() - words[_STARTED_NS], inbox, row_bytes, ranks.size)
        for i in range(ranks.size):
            order[i] = slots[ranks[i]]
        if payload_f16.size > 0:
            n = add_partials(
                residual, inbox_f16, order[: ranks.size], HEADER_BYTES // 2, limits[at]
            )
        else:
            n = add_partials(
                residual, inbox_f32, order[: ranks.size], HEADER_BYTES // 4, limits[at]
            )
        if n < ranks.size:
            words[_WHY], words[_RANK] = _WRONG, n
            return at
    words[_WHY] = _DONE
    return stop


@inner
def _write_request(frame: U8Array, expected: U8Array, seq: int, layer: int, phase: int) -> None:
    """Write what differs between the phases of a step, in the request and what answers it."""
    for header in (frame, expected):
        for i in range(4):
            header[SEQ_BYTE + i] = np.uint8((seq >> (8 * i)) & 255)
        header[LAYER_BYTE] = np.uint8(layer & 255)
        header[LAYER_BYTE + 1] = np.uint8(layer >> 8)
        header[PHASE_BYTE] = np.uint8(phase)


@inner
def _send_all(
    calls: I64Array,
    socket: int,
    routes: U8Array,
    route_sizes: I64Array,
    ranks: I32Array,
    frame: U8Array,
    slots: I32Array,
    words: I64Array,
) -> int:
    """Send the frame to all ranks without waiting; returns DONE or UNSENT."""
    for i in range(slots.size):
        slots[i] = _NOT_ASKED
    words[_N_GOT] = 0
    for rank in ranks:
        slots[rank] = _ASKED
        at = rank * MAX_ROUTE_BYTES
        n = send(calls, socket, routes, at, route_sizes[rank], MORE | DONT_WAIT)
        if n >= 0:
            n = send(calls, socket, frame, 0, frame.size, DONT_WAIT)
        if n < 0:
            words[_RANK], words[_ERROR] = rank, -n
            return _UNSENT
    return _DONE


@inner
def _gather(
    calls: I64Array,
    socket: int,
    routes: U8Array,
    route_sizes: I64Array,
    n_ranks: int,
    inbox: U8Array,
    row_bytes: int,
    expected: U8Array,
    route: U8Array,
    slots: I32Array,
    words: I64Array,
) -> int:
    """Receive the replies of all who were asked; returns DONE, SILENCE or ODD_FRAME."""
    while words[_N_GOT] < n_ranks:
        first = words[_N_GOT] * row_bytes
        n_route = receive(calls, socket, route, 0, route.size)
        if n_route < 0:
            return _SILENCE
        # A ROUTER puts the sender's route before what it sent: the next part is there already.
        n = receive(calls, socket, inbox, first, row_bytes)
        while n == -_EINTR:
            n = receive(calls, socket, inbox, first, row_bytes)
        words[_ROUTE_BYTES], words[_FRAME_BYTES] = n_route, n
        words[_MORE] = has_more(calls, socket)
        if words[_MORE] or n > row_bytes or not _is_reply(inbox, first, n, expected):
            return _ODD_FRAME
        rank = int(inbox[first + RANK_BYTE]) + 256 * int(inbox[first + RANK_BYTE + 1])
        if rank >= slots.size or slots[rank] != _ASKED:
            return _ODD_FRAME
        if n_route != route_sizes[rank]:
            return _ODD_FRAME
        for i in range(n_route):
            if route[i] != routes[rank * MAX_ROUTE_BYTES + i]:
                return _ODD_FRAME
        slots[rank] = words[_N_GOT]
        words[_N_GOT] += 1
    return _DONE


@inner
def _is_reply(inbox: U8Array, first: int, n_bytes: int, expected: U8Array) -> bool:
    """Tell whether the frame has the header that is expected, whatever its rank and busy time."""
    payload = BUSY_BYTE + 4
    if n_bytes < HEADER_BYTES or n_bytes != HEADER_BYTES + _u32(expected, payload):
        return False
    for i in range(HEADER_BYTES):
        if RANK_BYTE <= i < RANK_BYTE + 2 or BUSY_BYTE <= i < payload:
            continue
        if inbox[first + i] != expected[i]:
            return False
    return True


@inner
def _u32(data: U8Array, at: int) -> int:
    value = 0
    for i in range(4):
        value += int(data[at + i]) << (8 * i)
    return value


@inner
def _add_times(
    words: I64Array, waited_ns: int, inbox: U8Array, row_bytes: int, n_replies: int
) -> None:
    """Share the time of a dispatch out: kernels of the slowest member, exchange the rest."""
    busy_ns = 0
    for slot in range(n_replies):
        busy_ns = max(busy_ns, 1000 * _u32(inbox, slot * row_bytes + BUSY_BYTE))
    busy_ns = min(busy_ns, waited_ns)
    words[_KERNELS_NS] += busy_ns
    words[_EXCHANGE_NS] += waited_ns - busy_ns
    words[_LONGEST_NS] = max(words[_LONGEST_NS], waited_ns)
