"""From a STEP frame to its reply: the few lines of Python around the kernels of one member.

Works between two fixed buffers, the frame that came and the frame that goes, through NumPy views
made once per number of rows. Replies carry no row table (n_rows = 0): `seq` says what they
answer. Rows of attention are idempotent: a repeated STEP writes the same keys and values at the
same positions. Does not know sockets (`hot`).

    ATTENTION, MLP   x -> PARTIAL (n_rows, D)
    VOCAB            x, sampler block -> TOP, or LOGITS
    STAGE            x -> RESIDUAL (n_rows, D)
    STAGE + VOCAB_AFTER   x, sampler block of the last n_vocab_rows rows -> TOP or LOGITS, or an
                     empty RESIDUAL if no row wants the vocabulary; one call if all rows do
"""

import logging
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.emulation import Pace
from agent.frames import (
    HEADER_BYTES,
    Flag,
    FrameType,
    Header,
    Phase,
    Wire,
    pack_header,
    payload_offset,
)
from agent.ids import KvId
from agent.member import Member
from agent.phase_loop import PhaseLoop, StageCall, TokenCall
from agent.read_bytes import ReadBytes
from agent.samples import Samples
from agent.vocab_answer import VocabAnswer
from agent.vocab_payload import (
    TOP_ENTRY_BYTES,
    TOP_HEAD_BYTES,
    SamplerRow,
    read_sampler_rows,
)
from kernels.entries import decode_flat, encode_flat
from kernels.entry import Bound
from kernels.errors import HeadwiseError, WireError

__all__ = ["Stepper"]

log = logging.getLogger(__name__)

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

MAX_BUSY_US = 2**32 - 1


class _Views(NamedTuple):
    """Arrays over the two buffers and the scratch, for one number of rows and one wire type.

    `x_wire` and `out_wire` are flat uint16; with f32 on the wire they are empty, and `x` and
    `out` lie in the buffers themselves. Calls turn x_wire into x, and out or x into out_wire; their
    arguments are encoded once.
    """

    rows: npt.NDArray[np.uint32]
    row_bytes: memoryview
    slots: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    x_wire: npt.NDArray[np.uint16]
    x: F32
    out: F32
    out_wire: npt.NDArray[np.uint16]
    x_bytes: int
    decode: Bound
    encode_out: Bound
    encode_x: Bound


class Stepper:
    """Runs the steps of one member.

    Args:
        member: whose atoms.
        inbox: (MAX_FRAME_BYTES,) uint8, where frames are received.
        outbox: (MAX_FRAME_BYTES,) uint8, where replies are written.
        samples: gets the bytes that each kernel call of one row reads, and its nanoseconds.
        pace: keeps the calls as slow as an emulated board's; None leaves them alone.
    """

    def __init__(
        self, member: Member, inbox: U8, outbox: U8, samples: Samples, pace: Pace | None = None
    ) -> None:
        self._member = member
        self._kernels = member.kernels
        self._kv = member.kv
        self._rank = member.assignment.rank
        self._max_rows = member.assignment.max_rows
        self._inbox = inbox
        self._outbox = outbox
        self._inbox_bytes = inbox.data
        self._outbox_bytes = outbox.data
        shape = (self._max_rows, member.geometry.hidden_size)
        self._x = np.zeros(shape, np.float32)
        self._out = np.zeros(shape, np.float32)
        self._slots = np.zeros(self._max_rows, np.int32)
        self._positions = np.zeros(self._max_rows, np.int32)
        self._views: dict[tuple[int, Wire], _Views] = {}
        self._last_rows = b""
        self._last_token = (-1, -1)  # context and position of the last row that was taken alone
        self._samples = samples
        self._pace = pace
        self._reads = ReadBytes(member)
        self._read_bytes: npt.NDArray[np.int64] | None = None
        n_layers = 1 + max(member.layer_index, default=-1)
        self._layer_index = np.full(n_layers, -1, np.int32)
        for layer, index in member.layer_index.items():
            self._layer_index[layer] = index
        self._vocab = VocabAnswer(member, outbox)

    def forget_rows(self) -> None:
        """Drop what is remembered of the last row table; contexts have changed."""
        self._last_rows = b""

    def step(self, header: Header) -> int:
        """Run the STEP in the inbox and write its reply into the outbox.

        Returns:
            The reply's size in bytes.

        Raises:
            WireError: rows, layer or payload that do not fit the member.
            ResourceError: no KV page is free.
        """
        n_rows = header.n_rows
        if not 0 < n_rows <= self._max_rows:
            raise WireError(f"STEP of {n_rows} rows; the plan allows 1 to {self._max_rows}")
        views = self._views.get((n_rows, header.wire)) or self._make_views(n_rows, header.wire)
        phase = header.phase
        n_vocab_rows = header.n_vocab_rows if phase >= Phase.VOCAB else 0
        n_over = header.payload_bytes - views.x_bytes
        if n_over < 0 or (n_over and not n_vocab_rows):
            raise WireError(
                f"STEP payload has {header.payload_bytes} bytes; {n_rows} rows of x take "
                f"{views.x_bytes}"
            )
        if phase is Phase.VOCAB:
            return self._vocab_step(header, views)
        if phase is Phase.STAGE:
            return self._stage_step(header, views)
        return self._half_layer(header, views)

    def teach(self, loop: PhaseLoop, header: Header, n_bytes: int, n_reply_bytes: int) -> None:
        """Have compiled code serve what comes after the step just run, if that is like it.

        Args:
            loop: has forgotten what it knew.
            header: of the frame in the inbox.
            n_bytes: the frame's size.
            n_reply_bytes: the size of its reply, in the outbox.
        """
        if header.phase <= Phase.MLP:
            call = self.stage_call(header)
            loop.learn(n_bytes, payload_offset(header.n_rows), n_reply_bytes, call)
        elif header.phase is Phase.STAGE:
            try:
                token = self._token_call(header, n_reply_bytes)
            except HeadwiseError as e:  # its kernels are not at hand: only slower
                log.debug("tokens are left to Python: %s", e)
                return
            if token is not None:
                n_tokens = self._last_token[1] + 1
                loop.learn_token(n_bytes, n_reply_bytes, n_tokens, token, self._note_tokens)

    def stage_call(self, header: Header) -> StageCall:
        """Return how compiled code repeats the half layer just run, for other layers and phases.

        Valid as long as the rows are those of this step.
        """
        views = self._views[header.n_rows, header.wire]
        call = self._kernels.phase_call(views.x, views.out)
        x, out = views.x.reshape(-1), views.out.reshape(-1)
        # Many rows are bound by arithmetic: their time says nothing about the next token's.
        read_bytes = self._half_bytes(views) if header.n_rows == 1 else self._reads.nothing
        return StageCall(self._layer_index, read_bytes, views.x_wire, x, out, views.out_wire, *call)

    def _token_call(self, header: Header, n_reply_bytes: int) -> TokenCall | None:
        """Return how compiled code takes the token after the one just run through the stage.

        None where that is not for it: other texts take turns, or the answer is not always alike.
        """
        vocab_after = header.flags is Flag.VOCAB_AFTER
        if header.n_rows != 1 or header.n_vocab_rows != vocab_after:
            return None
        views = self._views[1, header.wire]
        kv_id, position = views.rows[0].tolist()
        before, self._last_token = self._last_token, (kv_id, position)
        n_tokens = self._kv.n_tokens(kv_id)
        if before != (kv_id, position - 1) or n_tokens != position + 1:
            return None
        sampler, n_read, n_top = SamplerRow(), self._reads.stage_weights_bytes, 0
        if vocab_after:
            (sampler,) = self._samplers(header, views)
            if sampler.full_logits or len(sampler.penalised_ids):
                return None
            n_top = self._vocab.n_wanted(sampler)
            if n_reply_bytes != HEADER_BYTES + TOP_HEAD_BYTES + TOP_ENTRY_BYTES * n_top:
                return None  # of logits that were not numbers
            n_read += self._reads.vocab
        kernels = self._kernels.token_call(views.x, self._vocab.row if vocab_after else None)
        x_stop = payload_offset(1) + views.x_bytes
        own_tokens = self._kv.own_tokens(kv_id, n_tokens)
        return TokenCall(
            x_stop, own_tokens, n_read, self._reads.stage_page_bytes, kernels.positions,
            views.x_wire, views.x.reshape(-1), views.out.reshape(-1), views.out_wire, n_top,
            kernels.prepare_address, kernels.prepare, kernels.stage_address, kernels.stage,
            *self._vocab.row_call(sampler, n_top),
        )  # fmt: skip

    def _note_tokens(self, n_tokens: int) -> None:
        """Take in that compiled code has carried the last text on, up to n_tokens."""
        kv_id, position = self._last_token
        if n_tokens > position + 1:
            self._kv.note_written(KvId(kv_id), n_tokens)
            self._last_token = (kv_id, n_tokens - 1)
            self._last_rows = b""

    def _half_layer(self, header: Header, views: _Views) -> int:
        """Turn x into this member's partial sum of one phase of one layer."""
        layer = self._member.layer_index.get(header.layer)
        if layer is None:
            raise WireError(f"layer {header.layer} is not in this member's stage")
        self._begin(views)
        n_layers = len(self._member.layer_index)
        n_read = int(self._half_bytes(views)[layer + (header.phase is Phase.MLP) * n_layers])
        f16 = header.wire is Wire.F16
        started_ns = perf_counter_ns()
        if f16:
            views.decode()
        if header.phase is Phase.ATTENTION:
            self._kernels.attention(layer, views.x, views.out)
        else:
            self._kernels.mlp(layer, views.x, views.out)
        if f16:
            views.encode_out()
        self._finish_call(n_read, header.n_rows, started_ns)
        return self._reply(header, FrameType.PARTIAL, views.x_bytes, started_ns)

    def _stage_step(self, header: Header, views: _Views) -> int:
        """Turn x into the residual after the stage's layers, or take it on to the vocabulary."""
        if not self._member.holds_stage:
            raise WireError("STAGE asked of a member that does not hold all atoms of its layers")
        vocab_after = header.flags is Flag.VOCAB_AFTER
        if vocab_after and not len(self._member.vocab_ids):
            raise WireError("VOCAB_AFTER asked of a member that holds no vocabulary")
        if header.n_vocab_rows and not vocab_after:
            raise WireError("STAGE names vocab rows without VOCAB_AFTER")
        samplers = self._samplers(header, views) if header.n_vocab_rows else []
        self._begin(views)
        n_read = self._reads.of_stage(views.rows)
        f16 = header.wire is Wire.F16
        started_ns = perf_counter_ns()
        if f16:
            views.decode()
        if len(samplers) == header.n_rows:
            kind, n_bytes = self._vocab.answer(views.x, samplers, layers_first=True)
            self._finish_call(n_read + self._reads.vocab, header.n_rows, started_ns)
            return self._reply(header, kind, n_bytes, started_ns)
        self._kernels.run_layers(views.x)
        self._finish_call(n_read, header.n_rows, started_ns)
        if samplers:
            kind, n_bytes = self._answer_vocab(self._tail(views, len(samplers)), samplers)
            return self._reply(header, kind, n_bytes, started_ns)
        if vocab_after:
            return self._reply(header, FrameType.RESIDUAL, 0, started_ns)
        if f16:
            views.encode_x()
        else:
            views.out[:] = views.x
        return self._reply(header, FrameType.RESIDUAL, views.x_bytes, started_ns)

    def _vocab_step(self, header: Header, views: _Views) -> int:
        """Turn x into the best candidates, or all logits, of this member's vocab rows."""
        if header.n_vocab_rows != header.n_rows or not len(self._member.vocab_ids):
            raise WireError(
                f"VOCAB step with {header.n_vocab_rows} vocab rows of {header.n_rows}, for a "
                f"member with {len(self._member.vocab_ids)} rows of the vocabulary"
            )
        samplers = self._samplers(header, views)
        self._begin(views)
        started_ns = perf_counter_ns()
        if header.wire is Wire.F16:
            views.decode()
        kind, n_bytes = self._answer_vocab(views.x, samplers)
        return self._reply(header, kind, n_bytes, started_ns)

    def _answer_vocab(self, x: F32, samplers: list[SamplerRow]) -> tuple[FrameType, int]:
        """Answer vocab rows, as slowly as an emulated board."""
        started_ns = perf_counter_ns()
        answer = self._vocab.answer(x, samplers)
        if self._pace is not None:
            self._pace.wait(self._reads.vocab, started_ns)
        return answer

    def _finish_call(self, n_bytes: int, n_rows: int, started_ns: int) -> None:
        """Wait as long as an emulated board would take, and note how fast the call was.

        With the vocabulary go the search for candidates and their sum: some 1 % of the time.
        """
        if self._pace is not None:
            self._pace.wait(n_bytes, started_ns)
        # Many rows are bound by arithmetic, see `stage_call`.
        if n_rows == 1 and n_bytes:
            self._samples.add(n_bytes, perf_counter_ns() - started_ns)

    def _samplers(self, header: Header, views: _Views) -> list[SamplerRow]:
        start = payload_offset(header.n_rows)
        block = self._inbox_bytes[start + views.x_bytes : start + header.payload_bytes]
        samplers = read_sampler_rows(block, header.n_vocab_rows)
        self._vocab.check(samplers)
        return samplers

    def _begin(self, views: _Views) -> None:
        """Take over the row table, unless it is the one of the last phase."""
        if views.row_bytes == self._last_rows:
            return
        self._last_rows = b""
        self._kv.prepare(views.rows, views.slots)
        views.positions[:] = views.rows[:, 1]
        self._kernels.begin(views.slots, views.positions)
        self._read_bytes = None
        self._last_rows = bytes(views.row_bytes)

    def _half_bytes(self, views: _Views) -> npt.NDArray[np.int64]:
        """Return what each half layer reads for the rows begun; counted once a step."""
        if self._read_bytes is None:
            self._read_bytes = self._reads.of_rows(views.rows)
        return self._read_bytes

    def _tail(self, views: _Views, n_rows: int) -> F32:
        """Return the last rows of x, not all, after telling the kernels that only these go on."""
        self._last_rows = b""
        self._kernels.begin(views.slots[-n_rows:], views.positions[-n_rows:])
        return views.x[-n_rows:]

    def _reply(self, asked: Header, kind: FrameType, n_bytes: int, started_ns: int) -> int:
        busy_us = min((perf_counter_ns() - started_ns) // 1000, MAX_BUSY_US)
        pack_header(
            self._outbox_bytes,
            Header(
                kind, asked.wire, asked.epoch, asked.run_id, asked.seq, asked.layer, asked.phase,
                Flag.NONE, self._rank, 0, 0, busy_us, n_bytes,
            ),
        )  # fmt: skip
        return HEADER_BYTES + n_bytes

    def _make_views(self, n_rows: int, wire: Wire) -> _Views:
        d = self._member.geometry.hidden_size
        start, n = payload_offset(n_rows), n_rows * d
        itemsize = 2 if wire is Wire.F16 else 4
        x_raw = self._inbox[start : start + itemsize * n]
        out_raw = self._outbox[HEADER_BYTES : HEADER_BYTES + itemsize * n]
        if wire is Wire.F16:
            x_wire, out_wire = x_raw.view(np.uint16), out_raw.view(np.uint16)
            x, out = self._x[:n_rows], self._out[:n_rows]
        else:
            x_wire = out_wire = np.empty(0, np.uint16)
            x, out = (raw.view(np.float32).reshape(n_rows, d) for raw in (x_raw, out_raw))
        flat_x, flat_out = x.reshape(-1), out.reshape(-1)
        views = self._views[n_rows, wire] = _Views(
            rows=self._inbox[HEADER_BYTES:start].view(np.uint32).reshape(n_rows, 2),
            row_bytes=self._inbox_bytes[HEADER_BYTES:start],
            slots=self._slots[:n_rows],
            positions=self._positions[:n_rows],
            x_wire=x_wire,
            x=x,
            out=out,
            out_wire=out_wire,
            x_bytes=itemsize * n,
            decode=decode_flat.bind((_read_only(x_wire), flat_x), 2, 0),
            encode_out=encode_flat.bind((_read_only(flat_out), out_wire), 2, 0),
            encode_x=encode_flat.bind((_read_only(flat_x), out_wire), 2, 0),
        )
        return views


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array as kernels take a source, like `kernels.wire_floats`: one specialisation."""
    view = array[:]
    view.flags.writeable = False
    return view
