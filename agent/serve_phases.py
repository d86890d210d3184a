"""The hot loop between two phases of a step, compiled: receive, run, send, without Python.

    repeat  receive a frame
            if it differs from the last STEP that Python served only in seq, layer and phase:
                partial = phase(layer, x); send the last reply with this seq, layer and phase
            else: hand it to Python

What Python has checked of a frame (`stepper`) thereby holds for every frame that is served here;
nothing is checked twice in two languages. Python sees the first phase of each step, whose row
table is new, and whatever is not half a layer: of the 44 phases of a 22-layer token, one.
"""

import errno
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.frames import BUSY_BYTE, LAYER_BYTE, PHASE_BYTE, SEQ_BYTE
from agent.native import note, now_ns, receive, send
from agent.phase_loop import CALLED, N_STEPS, N_UNSENT
from kernels.barrier import ABORT
from kernels.exchange import decode_flat, encode_flat
from kernels.formats import ATTENTION, MLP
from kernels.jit import inner, kernel
from kernels.native import call_at

__all__ = ["SYNC", "send_to_all", "serve_phases", "write_reply"]

U8Array = npt.NDArray[np.uint8]
I64Array = npt.NDArray[np.int64]

SYNC = 2  # place of the threads' words among the arguments of the phases
_MAX_BUSY_US = 2**32 - 1
_AGAIN = -errno.EAGAIN


@kernel
def serve_phases(
    calls: I64Array,
    sockets: I64Array,
    words: I64Array,
    ring: I64Array,
    inbox: U8Array,
    outbox: U8Array,
    known: U8Array,
    n_bytes: int,
    n_reply_bytes: int,
    layer_index: npt.NDArray[np.int32],
    read_bytes: I64Array,
    x_wire: npt.NDArray[np.uint16],
    x: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    out_wire: npt.NDArray[np.uint16],
    address: int,
    head: Any,
    tail: Any,
) -> int:
    """Answer frames like `known` until another one comes; return its size, or -errno.

    `sockets` are addresses, the receiving one first, then the holders. For the rest see
    `PhaseLoop` and `StageCall`.
    """
    while words[CALLED] == 0:
        n = receive(calls, sockets[0], inbox, 0, inbox.size)
        if n != n_bytes or not _differs_in_phase_only(inbox, known):
            return n
        layer = int(inbox[LAYER_BYTE]) + 256 * int(inbox[LAYER_BYTE + 1])
        phase = inbox[PHASE_BYTE]
        if phase > 1 or layer >= layer_index.size or layer_index[layer] < 0:
            return n
        started_ns = now_ns()
        if x_wire.size > 0:
            decode_flat(x_wire, x)
        first = np.int64(layer_index[layer])
        what = np.int64(ATTENTION) if phase == 0 else np.int64(MLP)
        call_at(address, (*head, what, first, first + 1, *tail))
        if head[SYNC][ABORT] != 0:  # a worker failed: Python knows how to say that
            return n
        if out_wire.size > 0:
            encode_flat(out, out_wire)
        busy_ns = now_ns() - started_ns
        write_reply(inbox, outbox, busy_ns // 1000)
        n_read = read_bytes[int(phase) * (read_bytes.size // 2) + first]
        if n_read > 0:
            note(ring, n_read, busy_ns)
        words[N_STEPS] += 1
        error = send_to_all(calls, sockets, words, outbox, n_reply_bytes)
        if error < 0:
            return error
    return _AGAIN


@inner
def _differs_in_phase_only(frame: U8Array, known: U8Array) -> bool:
    """Tell whether header and row table are those of `known`, but for seq, layer and phase."""
    for i in range(SEQ_BYTE):
        if frame[i] != known[i]:
            return False
    for i in range(PHASE_BYTE + 1, known.size):  # noqa: SIM110 (compiled)
        if frame[i] != known[i]:
            return False
    return True


@inner
def write_reply(asked: U8Array, reply: U8Array, busy_us: int) -> None:
    """Name in the reply what it answers and how long the kernels took."""
    for i in range(SEQ_BYTE, PHASE_BYTE + 1):
        reply[i] = asked[i]
    busy_us = min(busy_us, _MAX_BUSY_US)
    for i in range(4):
        reply[BUSY_BYTE + i] = np.uint8((busy_us >> (8 * i)) & 255)


@inner
def send_to_all(
    calls: I64Array, sockets: I64Array, words: I64Array, reply: U8Array, n_bytes: int
) -> int:
    """Send a reply to every holder; return 0, or -errno where a socket is broken."""
    for holder in sockets[1:]:
        sent = send(calls, holder, reply, 0, n_bytes, 0)
        if sent == _AGAIN:
            words[N_UNSENT] += 1
        elif sent < 0:
            return sent
    return 0
