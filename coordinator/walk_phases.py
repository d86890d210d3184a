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
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from agent.frames import (
    BUSY_BYTE,
    HEADER_BYTES,
    LAYER_BYTE,
    PHASE_BYTE,
    RANK_BYTE,
    SEQ_BYTE,
)
from agent.native import DONT_WAIT, MORE, has_more, note, now_ns, receive, send, u32_at
from kernels.exchange import add_partials, encode_flat
from kernels.jit import inner, kernel

__all__ = [
    "ERROR", "FRAME_BYTES", "HAS_MORE", "KERNELS_NS", "LONGEST_NS", "MAX_ROUTE_BYTES", "NOT_ASKED",
    "N_WORDS", "RANK", "RANKS", "RANK_BITS", "ROUTE_BYTES", "STARTED_NS", "WHY", "Stop",
    "walk_phases",
]  # fmt: skip

U8Array = npt.NDArray[np.uint8]
I32Array = npt.NDArray[np.int32]
I64Array = npt.NDArray[np.int64]

MAX_ROUTE_BYTES = 256
_EINTR = errno.EINTR
NOT_ASKED, _ASKED = -2, -1

# Columns of the schedule table: layer, phase, number of ranks, ranks.
_LAYER, _PHASE, _N_RANKS, RANKS = range(4)
# Words that the walk leaves behind: where and why it stopped, and sums of times.
WHY, RANK, ERROR, ROUTE_BYTES, FRAME_BYTES, HAS_MORE, _N_GOT = range(7)
STARTED_NS, KERNELS_NS, _EXCHANGE_NS, LONGEST_NS, N_WORDS = range(7, 12)
# What the ring holds of each reply: bytes of both frames above the rank, then nanoseconds.
RANK_BITS = 16


class Stop(IntEnum):
    """Why a walk ended."""

    DONE = 0  # all dispatches are carried out
    SILENCE = 1  # nothing came within the socket's time
    ODD_FRAME = 2  # a frame came that Python has to look at
    UNSENT = 3  # the link to a member takes nothing
    WRONG = 4  # all replies are in, but one has NaN or a number beyond its limit, or its sum inf


# Plain numbers for compiled code.
_DONE, _SILENCE, _ODD_FRAME, _UNSENT, _WRONG = (int(why) for why in Stop)


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
    ring: I64Array,
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
    The three inboxes are views of the same rows; `ring` gets how long each reply was under way.
    For the rest see `phase_walk.PhaseWalk`.
    """
    row_bytes = inbox_f32.shape[1] * 4
    for at in range(first, stop):
        row = schedule[at]
        ranks = row[RANKS : RANKS + row[_N_RANKS]]
        if payload_f16.size > 0:
            encode_flat(residual, payload_f16)
        else:
            for i in range(residual.size):  # a slice assignment would allocate
                payload_f32[i] = residual[i]
        _write_request(frame, expected, seq + at - first, row[_LAYER], row[_PHASE])
        words[STARTED_NS] = now_ns()
        words[WHY] = _send_all(calls, socket, routes, route_sizes, ranks, frame, slots, words)
        if words[WHY] == _DONE:
            words[WHY] = _gather(
                calls, socket, routes, route_sizes, ranks.size, inbox, row_bytes, expected, route,
                slots, words, ring, frame.size,
            )  # fmt: skip
        if words[WHY] != _DONE:
            return at
        _add_times(words, now_ns() - words[STARTED_NS], inbox, row_bytes, ranks.size)
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
            words[WHY], words[RANK] = _WRONG, n
            return at
    words[WHY] = _DONE
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
        slots[i] = NOT_ASKED
    words[_N_GOT] = 0
    for rank in ranks:
        slots[rank] = _ASKED
        at = rank * MAX_ROUTE_BYTES
        n = send(calls, socket, routes, at, route_sizes[rank], MORE | DONT_WAIT)
        if n >= 0:
            n = send(calls, socket, frame, 0, frame.size, DONT_WAIT)
        if n < 0:
            words[RANK], words[ERROR] = rank, -n
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
    ring: I64Array,
    frame_bytes: int,
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
        words[ROUTE_BYTES], words[FRAME_BYTES] = n_route, n
        words[HAS_MORE] = has_more(calls, socket)
        if words[HAS_MORE] or n > row_bytes or not _is_reply(inbox, first, n, expected):
            return _ODD_FRAME
        rank = int(inbox[first + RANK_BYTE]) + 256 * int(inbox[first + RANK_BYTE + 1])
        if rank >= slots.size or slots[rank] != _ASKED:
            return _ODD_FRAME
        if n_route != route_sizes[rank]:
            return _ODD_FRAME
        for i in range(n_route):
            if route[i] != routes[rank * MAX_ROUTE_BYTES + i]:
                return _ODD_FRAME
        busy_ns = 1000 * u32_at(inbox, first + BUSY_BYTE)
        note(ring, rank + ((frame_bytes + n) << RANK_BITS), now_ns() - words[STARTED_NS] - busy_ns)
        slots[rank] = words[_N_GOT]
        words[_N_GOT] += 1
    return _DONE


@inner
def _is_reply(inbox: U8Array, first: int, n_bytes: int, expected: U8Array) -> bool:
    """Tell whether the frame has the header that is expected, whatever its rank and busy time."""
    payload = BUSY_BYTE + 4
    if n_bytes < HEADER_BYTES or n_bytes != HEADER_BYTES + u32_at(expected, payload):
        return False
    for i in range(HEADER_BYTES):
        if RANK_BYTE <= i < RANK_BYTE + 2 or BUSY_BYTE <= i < payload:
            continue
        if inbox[first + i] != expected[i]:
            return False
    return True


@inner
def _add_times(
    words: I64Array, waited_ns: int, inbox: U8Array, row_bytes: int, n_replies: int
) -> None:
    """Share the time of a dispatch out: kernels of the slowest member, exchange the rest."""
    busy_ns = 0
    for slot in range(n_replies):
        busy_ns = max(busy_ns, 1000 * u32_at(inbox, slot * row_bytes + BUSY_BYTE))
    busy_ns = min(busy_ns, waited_ns)
    words[KERNELS_NS] += busy_ns
    words[_EXCHANGE_NS] += waited_ns - busy_ns
    words[LONGEST_NS] = max(words[LONGEST_NS], waited_ns)
