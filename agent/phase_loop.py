"""The hot loop between frames that are alike, as Python sees it: what compiled code has learnt.

`serve_phases` receives, runs and sends the half layers of a step, `serve_tokens` the tokens of a
text; this file tells them which frames they may serve, and stops them.
"""

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zmq

from agent.frames import HEADER_BYTES
from kernels.entry import Entry

__all__ = [
    "CALLED",
    "N_STEPS",
    "N_TOKENS",
    "N_UNSENT",
    "PhaseLoop",
    "StageCall",
    "TokenCall",
    "load_phase_loop",
    "load_token_loop",
]

U8Array = npt.NDArray[np.uint8]
I64Array = npt.NDArray[np.int64]

# Words shared with compiled code: Python wants to be heard; how many steps were served, how many
# replies found no link, and how many tokens the context of a `TokenCall` has.
CALLED, N_STEPS, N_UNSENT, N_TOKENS, _N_WORDS = range(5)

serve_phases = Entry("agent.serve_phases", "serve_phases")
serve_tokens = Entry("agent.serve_tokens", "serve_tokens")


class StageCall(NamedTuple):
    """How compiled code runs half a layer on the rows of the last step.

    Attributes:
        layer_index: (n,) int32, place in the member's stage of each layer, -1 where none.
        read_bytes: (2 * layers of the stage,) int64, what each layer's attention and then each
            layer's MLP read on these rows; 0 where that says nothing about the board's speed.
        x_wire: (n,) uint16, the payload that came; empty with f32 on the wire.
        x: (n,) float32, where the phases read the residual.
        out: (n,) float32, where they write the partial sum.
        out_wire: (n,) uint16, the payload that goes; empty with f32 on the wire.
        address: the compiled phases, see `kernels.native`.
        head: their arguments before (what, first_layer, stop_layer).
        tail: those after.
    """

    layer_index: npt.NDArray[np.int32]
    read_bytes: I64Array
    x_wire: npt.NDArray[np.uint16]
    x: npt.NDArray[np.float32]
    out: npt.NDArray[np.float32]
    out_wire: npt.NDArray[np.uint16]
    address: int
    head: tuple[Any, ...]
    tail: tuple[Any, ...]


class TokenCall(NamedTuple):
    """How compiled code takes the next token of a text through a stage.

    Attributes:
        x_stop: where the residual ends in the frame.
        own_tokens: positions below have pages that this context shares with no other one.
        weights_bytes: what a token reads apart from keys and values.
        page_bytes: what it reads of those for each page of the context.
        positions: (n,) int32, gets the position, of which `prepare` makes the row table.
        x_wire: (D,) uint16, the payload that came; empty with f32 on the wire.
        x: (D,) float32, the residual, replaced by the stage.
        out: (D,) float32, the payload that goes, for a residual with f32 on the wire.
        out_wire: (D,) uint16, the same with f16; empty with f32.
        n_top: candidates of the vocabulary that go instead of the residual; 0 = the residual goes.
        prepare_address: of the compiled `prepare_rows`, see `kernels.native`.
        prepare: its arguments.
        stage_address: of the compiled phases.
        stage: their arguments.
        top_address: of the compiled `top_of_row`.
        top: its arguments; it writes into the reply.
    """

    x_stop: int
    own_tokens: int
    weights_bytes: int
    page_bytes: int
    positions: npt.NDArray[np.int32]
    x_wire: npt.NDArray[np.uint16]
    x: npt.NDArray[np.float32]
    out: npt.NDArray[np.float32]
    out_wire: npt.NDArray[np.uint16]
    n_top: int
    prepare_address: int
    prepare: tuple[Any, ...]
    stage_address: int
    stage: tuple[Any, ...]
    top_address: int
    top: tuple[Any, ...]


class PhaseLoop:
    """Serves steps like the last one on behalf of the hot loop.

    Args:
        calls: of `zmq_calls.find_calls`.
        socket: receives frames.
        holders: sockets that every reply goes to.
        inbox: (n,) uint8, where frames are received.
        outbox: (n,) uint8, holds the reply to the last STEP.
        ring: of the `Samples` that get the bytes and nanoseconds of each step.
    """

    def __init__(
        self,
        calls: I64Array,
        socket: zmq.Socket[bytes],
        holders: tuple[zmq.Socket[bytes], ...],
        inbox: U8Array,
        outbox: U8Array,
        ring: I64Array,
    ) -> None:
        addresses = np.array([socket.underlying, *(h.underlying for h in holders)], np.int64)
        self._words = np.zeros(_N_WORDS, np.int64)
        self._ends = (calls, addresses, self._words, ring, inbox, outbox)
        self._inbox = inbox
        self._serve = serve_phases
        self._args: tuple[Any, ...] = ()
        self._on_tokens: Callable[[int], None] | None = None

    def learn(self, n_bytes: int, n_head_bytes: int, n_reply_bytes: int, call: StageCall) -> None:
        """Serve frames like the one in the inbox from now on.

        Args:
            n_bytes: its size.
            n_head_bytes: the size of its header and row table.
            n_reply_bytes: the size of its reply, which is in the outbox.
            call: how to run its phase.
        """
        known = self._inbox[:n_head_bytes].copy()
        self._serve, self._on_tokens = serve_phases, None
        self._args = (*self._ends, known, n_bytes, n_reply_bytes, *call)

    def learn_token(
        self, n_bytes: int, n_reply_bytes: int, n_tokens: int, call: TokenCall,
        on_tokens: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Serve the tokens that come after the one in the inbox from now on.

        Args:
            n_bytes: the frame's size.
            n_reply_bytes: the size of its reply, which is in the outbox.
            n_tokens: how many its context has.
            call: how to run the stage.
            on_tokens: is told how many the context has, whenever compiled code returns.
        """
        self._serve, self._on_tokens = serve_tokens, on_tokens
        self._words[N_TOKENS] = n_tokens
        self._args = (*self._ends, self._inbox[:n_bytes].copy(), n_reply_bytes, *call)

    def forget(self) -> None:
        """Hand every frame to Python until `learn` is called again."""
        self._args, self._on_tokens = (), None

    @property
    def ready(self) -> bool:
        """Whether `next_frame` may be called."""
        return bool(self._args)

    def call(self) -> None:
        """Have `next_frame` return soon; safe from any thread."""
        self._words[CALLED] = 1

    @property
    def n_steps(self) -> int:
        """Steps served here."""
        return int(self._words[N_STEPS])

    @property
    def n_unsent(self) -> int:
        """Replies that found no link."""
        return int(self._words[N_UNSENT])

    def next_frame(self) -> int:
        """Serve steps; return the size of the first frame in the inbox that Python must serve.

        Raises:
            zmq.Again: nothing came within the socket's time, or somebody called.
            zmq.ZMQError: the socket cannot receive.
        """
        assert self._args, "nothing learnt"
        n_bytes: int = self._serve(*self._args)
        self._words[CALLED] = 0
        if self._on_tokens is not None:
            self._on_tokens(int(self._words[N_TOKENS]))
        if n_bytes >= 0:
            return n_bytes
        if n_bytes in (-errno.EAGAIN, -errno.EINTR):
            raise zmq.Again
        raise zmq.ZMQError(-n_bytes)


def load_phase_loop(call: StageCall) -> None:
    """Compile the loop for calls of this kind, or load it from the cache; serves nothing."""
    words = np.ones(_N_WORDS, np.int64)  # somebody called
    frame, none = np.zeros(HEADER_BYTES, np.uint8), np.zeros(1, np.int64)
    serve_phases(none, none, words, none, frame, frame, frame, 0, 0, *call)


def load_token_loop(call: TokenCall) -> None:
    """Do the same with the loop that serves tokens."""
    words = np.ones(_N_WORDS, np.int64)  # somebody called
    frame, none = np.zeros(HEADER_BYTES, np.uint8), np.zeros(1, np.int64)
    serve_tokens(none, none, words, none, frame, frame, frame, 0, *call)
