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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zmq

from agent.frames import BUSY_BYTE, HEADER_BYTES, LAYER_BYTE, PHASE_BYTE, SEQ_BYTE
from agent.native import now_ns, receive, send
from kernels.exchange import decode_flat, encode_flat
from kernels.jit import inner, kernel
from kernels.native import call_at
from kernels.phases import ATTENTION, MLP

__all__ = ["PhaseLoop", "StageCall", "load_phase_loop"]

U8Array = npt.NDArray[np.uint8]
I64Array = npt.NDArray[np.int64]

_MAX_BUSY_US = 2**32 - 1
_AGAIN = -errno.EAGAIN
# Words shared with Python: it wants to be heard; how many phases and replies there were.
_CALLED, _N_STEPS, _N_UNSENT, _N_WORDS = range(4)


class StageCall(NamedTuple):
    """How compiled code runs half a layer on the rows of the last step.

    Attributes:
        layer_index: (n,) int32, place in the member's stage of each layer, -1 where none.
        x_wire: (n,) uint16, the payload that came; empty with f32 on the wire.
        x: (n,) float32, where the phases read the residual.
        out: (n,) float32, where they write the partial sum.
        out_wire: (n,) uint16, the payload that goes; empty with f32 on the wire.
        address: the compiled phases, see `kernels.native`.
        head: their arguments before (what, first_layer, stop_layer).
        tail: those after.
    """

    layer_index: npt.NDArray[np.int32]
    x_wire: npt.NDArray[np.uint16]
    x: npt.NDArray[np.float32]
    out: npt.NDArray[np.float32]
    out_wire: npt.NDArray[np.uint16]
    address: int
    head: tuple[Any, ...]
    tail: tuple[Any, ...]


class PhaseLoop:
    """Serves phases like the last one on behalf of the hot loop.

    Args:
        calls: of `native.find_calls`.
        socket: receives frames.
        holders: sockets that every reply goes to.
        inbox: (n,) uint8, where frames are received.
        outbox: (n,) uint8, holds the reply to the last STEP.
    """

    def __init__(
        self,
        calls: I64Array,
        socket: zmq.Socket[bytes],
        holders: tuple[zmq.Socket[bytes], ...],
        inbox: U8Array,
        outbox: U8Array,
    ) -> None:
        addresses = np.array([socket.underlying, *(h.underlying for h in holders)], np.int64)
        self._words = np.zeros(_N_WORDS, np.int64)
        self._ends = (calls, addresses, self._words, inbox, outbox)
        self._inbox = inbox
        self._args: tuple[Any, ...] | None = None

    def learn(self, n_bytes: int, n_head_bytes: int, n_reply_bytes: int, call: StageCall) -> None:
        """Serve frames like the one in the inbox from now on.

        Args:
            n_bytes: its size.
            n_head_bytes: the size of its header and row table.
            n_reply_bytes: the size of its reply, which is in the outbox.
            call: how to run its phase.
        """
        known = self._inbox[:n_head_bytes].copy()
        self._args = (*self._ends, known, n_bytes, n_reply_bytes, *call)

    def forget(self) -> None:
        """Hand every frame to Python until `learn` is called again."""
        self._args = None

    @property
    def ready(self) -> bool:
        """Whether `next_frame` may be called."""
        return self._args is not None

    def call(self) -> None:
        """Have `next_frame` return soon; safe from any thread."""
        self._words[_CALLED] = 1

    @property
    def n_steps(self) -> int:
        """Phases served here."""
        return int(self._words[_N_STEPS])

    @property
    def n_unsent(self) -> int:
        """Replies that found no link."""
        return int(self._words[_N_UNSENT])

    def next_frame(self) -> int:
        """Serve phases; return the size of the first frame in the inbox that Python must serve.

        Raises:
            zmq.Again: nothing came within the socket's time, or somebody called.
            zmq.ZMQError: the socket cannot receive.
        """
        assert self._args is not None, "nothing learnt"
        n_bytes = serve_phases(*self._args)
        self._words[_CALLED] = 0
        if n_bytes >= 0:
            return n_bytes
        if n_bytes in (-errno.EAGAIN, -errno.EINTR):
            raise zmq.Again
        raise zmq.ZMQError(-n_bytes)


def load_phase_loop(call: StageCall) -> None:
    """Compile the loop for calls of this kind, or load it from the cache; serves nothing."""
    words = np.ones(_N_WORDS, np.int64)  # somebody called
    frame, none = np.zeros(HEADER_BYTES, np.uint8), np.zeros(1, np.int64)
    serve_phases(none, none, words, frame, frame, frame, 0, 0, *call)


@kernel
def serve_phases(
    calls: I64Array,
    sockets: I64Array,
    words: I64Array,
    inbox: U8Array,
    outbox: U8Array,
    known: U8Array,
    n_bytes: int,
    n_reply_bytes: int,
    layer_index: npt.NDArray[np.int32],
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
    while words[_CALLED] == 0:
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
        if out_wire.size > 0:
            encode_flat(out, out_wire)
        _write_reply(inbox, outbox, (now_ns() - started_ns) // 1000)
        words[_N_STEPS] += 1
        for holder in sockets[1:]:
            sent = send(calls, holder, outbox, 0, n_reply_bytes, 0)
            if sent == _AGAIN:
                words[_N_UNSENT] += 1
            elif sent < 0:
                return sent
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
def _write_reply(asked: U8Array, reply: U8Array, busy_us: int) -> None:
    """Name in the reply what it answers and how long the kernels took."""
    for i in range(SEQ_BYTE, PHASE_BYTE + 1):
        reply[i] = asked[i]
    busy_us = min(busy_us, _MAX_BUSY_US)
    for i in range(4):
        reply[BUSY_BYTE + i] = np.uint8((busy_us >> (8 * i)) & 255)
