"""The hot loop between two tokens of a text, compiled: receive, run the stage, send.

    repeat  receive a frame
            if it differs from the last STEP that Python served only in seq, position and residual,
            and the position is the context's next one, on a page that is its own:
                x = layers(x); send the residual, or what the vocabulary's holder says of its row
            else: hand it to Python

For members that hold all of their layers, like `serve_phases` for those that hold parts: one text
that is written alone comes to Python once a page. A frame whose logits are no numbers, or on which
a worker failed, has been run when it is handed over, and Python runs it once more to say what is
wrong; with f32 on the wire, on what the first run made of its residual.
"""

import errno
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.frames import POSITION_BYTE, SEQ_BYTE
from agent.native import note, now_ns, receive, u32_at
from agent.phase_loop import CALLED, N_STEPS, N_TOKENS
from agent.serve_phases import SYNC, send_to_all, write_reply
from kernels.barrier import ABORT
from kernels.exchange import decode_flat, encode_flat
from kernels.jit import inner, kernel
from kernels.native import ask_at, call_at
from kernels.paging import PAGE_TOKENS

__all__ = ["serve_tokens"]

U8Array = npt.NDArray[np.uint8]
I64Array = npt.NDArray[np.int64]

_AGAIN = -errno.EAGAIN


@kernel
def serve_tokens(
    calls: I64Array,
    sockets: I64Array,
    words: I64Array,
    ring: I64Array,
    inbox: U8Array,
    outbox: U8Array,
    known: U8Array,
    n_reply_bytes: int,
    x_stop: int,
    own_tokens: int,
    weights_bytes: int,
    page_bytes: int,
    positions: npt.NDArray[np.int32],
    x_wire: npt.NDArray[np.uint16],
    x: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    out_wire: npt.NDArray[np.uint16],
    n_top: int,
    prepare_address: int,
    prepare: Any,
    stage_address: int,
    stage: Any,
    top_address: int,
    top: Any,
) -> int:
    """Answer frames like `known` until another one comes; return its size, or -errno.

    `sockets` are addresses, the receiving one first, then the holders. For the rest see
    `PhaseLoop` and `TokenCall`.
    """
    while words[CALLED] == 0:
        n = receive(calls, sockets[0], inbox, 0, inbox.size)
        if n != known.size or not _is_alike(inbox, known, x_stop):
            return n
        position = u32_at(inbox, POSITION_BYTE)
        if position != words[N_TOKENS] or position >= own_tokens:
            return n
        positions[0] = position
        if ask_at(prepare_address, prepare) >= 0:
            return n
        started_ns = now_ns()
        if x_wire.size > 0:
            decode_flat(x_wire, x)
        call_at(stage_address, stage)
        if stage[SYNC][ABORT] != 0:
            return n
        if n_top > 0:
            if ask_at(top_address, top) != n_top:
                return n  # not numbers: Python knows how to say that
        elif out_wire.size > 0:
            encode_flat(x, out_wire)
        else:
            for i in range(out.size):
                out[i] = x[i]
        busy_ns = now_ns() - started_ns
        write_reply(inbox, outbox, busy_ns // 1000)
        note(ring, weights_bytes + (position + 1) * page_bytes // PAGE_TOKENS, busy_ns)
        words[N_STEPS] += 1
        words[N_TOKENS] = position + 1
        error = send_to_all(calls, sockets, words, outbox, n_reply_bytes)
        if error < 0:
            return error
    return _AGAIN


@inner
def _is_alike(frame: U8Array, known: U8Array, x_stop: int) -> bool:
    """Tell whether a frame is `known` but for seq, position and residual."""
    for i in range(POSITION_BYTE):
        if frame[i] != known[i] and not SEQ_BYTE <= i < SEQ_BYTE + 4:
            return False
    for i in range(x_stop, known.size):  # noqa: SIM110 (compiled)
        if frame[i] != known[i]:
            return False
    return True
