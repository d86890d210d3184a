"""One step through the cluster: the coordinator's hot path, top to bottom.

A step takes rows of embeddings through every layer and, for the rows that need it, through the
vocabulary. In a star the coordinator is the only holder of the residual: each phase sends it to
the members that have atoms for it, adds their partial sums in rank order and goes on. The list
of dispatches comes from `schedule`, sockets from `hot_link`; sampling happens in `generation`.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.frames import (
    HEADER_BYTES,
    Flag,
    FrameType,
    Header,
    Phase,
    Wire,
    pack_header,
    payload_offset,
    write_rows,
)
from agent.ids import Epoch, KvId, Rank, RunId
from agent.kv_ops import KvOp, pack_kv_ops
from agent.share import AtomRange, indices
from agent.vocab_payload import SamplerRow, TopRow, pack_sampler_rows, read_top_rows
from coordinator.hot_link import HotLink, Reply
from coordinator.plan import Plan
from coordinator.schedule import Dispatch, make_schedule
from kernels.errors import RemoteError
from kernels.exchange import add_partial, decode_f16, encode_f16
from kernels.layout import VOCAB_ROWS_PER_ATOM, Geometry

__all__ = ["Engine", "Rows", "StepTimes"]

log = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]

# A member that is alive but silent for this long fails the request. A phase normally takes
# milliseconds; a board that pages its weights in from an SD card may take seconds once.
PHASE_TIMEOUT_S = 60.0


class Rows(NamedTuple):
    """The row table of one step: which context each row belongs to, and where in it."""

    kv_ids: list[KvId]
    positions: list[int]


@dataclass
class StepTimes:
    """Where the time of steps went, summed: kernels (slowest member), exchange, coordinator."""

    kernels_s: float = 0.0
    exchange_s: float = 0.0
    coordinator_s: float = 0.0
    longest_dispatch_s: float = 0.0
    n_steps: int = 0
    n_dispatches: int = 0


class _NonFiniteError(Exception):
    """A partial sum with inf or NaN, perhaps only because f16 overflowed."""


class Engine:
    """Carries rows through one plan.

    Args:
        link: the hot channel, joined by every member of the plan.
        plan: a checked plan.
        geometry: the model's shapes.
        run_id: number of this run.
        epoch: the plan's epoch.
        max_rows: most rows of one step.
    """

    def __init__(
        self,
        link: HotLink,
        plan: Plan,
        geometry: Geometry,
        run_id: RunId,
        epoch: Epoch,
        max_rows: int,
    ) -> None:
        self._link = link
        self._geometry = geometry
        self._names = [m.agent for m in plan.members]
        self._vocab_rows = [_token_ids(m.vocab, geometry) for m in plan.members]
        self._schedule = make_schedule(plan, geometry)
        self._wire = Wire.F16 if plan.wire == "f16" else Wire.F32
        self._run_id = run_id
        self._epoch = epoch
        self.max_rows = max_rows
        frame_bytes = payload_offset(max_rows) + 4 * max_rows * geometry.hidden_size
        self._frame = bytearray(frame_bytes)
        self._before = np.empty((max_rows, geometry.hidden_size), np.float32)
        self._views: dict[tuple[Wire, int], npt.NDArray[Any]] = {}
        self.times = StepTimes()

    def control_kv(self, ops: Sequence[KvOp]) -> None:
        """Send operations on contexts to every member; they precede all later steps.

        Raises:
            AgentLostError: a member's link is closed.
        """
        payload = pack_kv_ops(ops)
        frame = bytearray(HEADER_BYTES + len(payload))
        header = self._header(FrameType.KV, Wire.F32)._replace(payload_bytes=len(payload))
        pack_header(frame, header)
        frame[HEADER_BYTES:] = payload
        for rank in range(len(self._names)):
            self._link.send(Rank(rank), frame)

    def step(
        self, x: F32, rows: Rows, samplers: Sequence[SamplerRow] = ()
    ) -> list[list[TopRow]] | F32:
        """Take rows through all layers, and the last len(samplers) of them to the vocabulary.

        Args:
            x: embeddings of the rows, (n_rows, D) f32; becomes the final residual in place.
            rows: context and position of each row.
            samplers: what the vocab holders need for each of the last rows.

        Returns:
            For each vocab row the holders' best candidates; or, if the samplers ask for full
            logits, an array (len(samplers), V) f32.

        Raises:
            AgentLostError: a member died, froze or was cut off.
            RemoteError: a member reports an error, or partial sums are not finite in f32 either.
        """
        before = self._before[: len(x)]
        before[:] = x
        started_s = time.perf_counter()
        spent_s = self.times.kernels_s + self.times.exchange_s
        try:
            answer = self._walk(x, rows, samplers, self._wire)
        except _NonFiniteError as e:
            # f16 ends at 65504: rows are idempotent, so the step simply runs again in f32.
            log.warning("step at pos=%d repeated in f32: %s", rows.positions[-1], e)
            x[:] = before
            try:
                answer = self._walk(x, rows, samplers, Wire.F32)
            except _NonFiniteError as again:
                raise RemoteError(
                    f"{again}, in f32 too; the weights or that agent's memory are damaged: "
                    f"run `headwise verify`"
                ) from again
        spent_s = self.times.kernels_s + self.times.exchange_s - spent_s
        self.times.coordinator_s += time.perf_counter() - started_s - spent_s
        self.times.n_steps += 1
        return answer

    def _walk(
        self, x: F32, rows: Rows, samplers: Sequence[SamplerRow], wire: Wire
    ) -> list[list[TopRow]] | F32:
        n_rows, n_vocab_rows = len(x), len(samplers)
        write_rows(self._frame, rows.kv_ids, rows.positions)
        for dispatch in self._schedule:
            if dispatch.phase == Phase.VOCAB:
                break
            if dispatch.vocab_after:
                replies = self._ask(dispatch, x, n_vocab_rows, wire, samplers)
                return self._vocab_answer(replies, dispatch, samplers)
            replies = self._ask(dispatch, x, 0, wire)
            if dispatch.phase == Phase.STAGE:
                self._read_residual(replies[0], dispatch, x)
            else:
                self._add_partials(replies, dispatch, x)
        if not n_vocab_rows:
            return []
        tail = slice(n_rows - n_vocab_rows, n_rows)
        write_rows(self._frame, rows.kv_ids[tail], rows.positions[tail])
        replies = self._ask(dispatch, x[tail], n_vocab_rows, wire, samplers)
        return self._vocab_answer(replies, dispatch, samplers)

    def _ask(
        self,
        dispatch: Dispatch,
        x: F32,
        n_vocab_rows: int,
        wire: Wire,
        samplers: Sequence[SamplerRow] = (),
    ) -> list[Reply]:
        """Send x to the members of a dispatch and gather their replies in rank order."""
        n_rows = len(x)
        payload = self._payload(wire, n_rows)
        if wire == Wire.F16:
            encode_f16(x.reshape(-1), payload.reshape(-1))
        else:
            payload[:] = x
        seq = self._link.next_seq()
        end = payload_offset(n_rows) + payload.nbytes
        frame: memoryview | bytes = memoryview(self._frame)[:end]
        block = pack_sampler_rows(list(samplers)) if samplers else b""
        flags = Flag.VOCAB_AFTER if dispatch.vocab_after else Flag.NONE
        pack_header(
            self._frame,
            Header(
                FrameType.STEP, wire, self._epoch, self._run_id, seq, dispatch.layer,
                dispatch.phase, flags, Rank(0), n_rows, n_vocab_rows, 0,
                payload.nbytes + len(block),
            ),
        )  # fmt: skip
        if block:
            frame = bytes(frame) + block
        asked_s = time.perf_counter()
        replies = self._link.exchange(frame, seq, dispatch.ranks, PHASE_TIMEOUT_S)
        waited_s = time.perf_counter() - asked_s
        kernels_s = min(waited_s, 1e-6 * max(r.header.busy_us for r in replies))
        self.times.kernels_s += kernels_s
        self.times.exchange_s += waited_s - kernels_s
        self.times.longest_dispatch_s = max(self.times.longest_dispatch_s, waited_s)
        self.times.n_dispatches += 1
        return replies

    def _add_partials(self, replies: list[Reply], dispatch: Dispatch, x: F32) -> None:
        for rank, reply in zip(dispatch.ranks, replies, strict=True):
            partial = self._array(reply, rank, FrameType.PARTIAL, x.shape)
            if not add_partial(x, partial):
                raise _NonFiniteError(
                    f"agent {self._names[rank]!r} sent a partial sum with inf or NaN in "
                    f"{dispatch.phase.name.lower()} of layer {dispatch.layer}"
                )

    def _read_residual(self, reply: Reply, dispatch: Dispatch, x: F32) -> None:
        rank = dispatch.ranks[0]
        residual = self._array(reply, rank, FrameType.RESIDUAL, x.shape)
        if reply.header.wire == Wire.F16:
            decode_f16(residual.reshape(-1), x.reshape(-1))
        else:
            x[:] = residual
        if not np.isfinite(x).all():
            raise _NonFiniteError(
                f"agent {self._names[rank]!r} sent a residual with inf or NaN after the stage "
                f"from layer {dispatch.layer}"
            )

    def _vocab_answer(
        self, replies: list[Reply], dispatch: Dispatch, samplers: Sequence[SamplerRow]
    ) -> list[list[TopRow]] | F32:
        n_rows = len(samplers)
        if not n_rows:
            return []
        if samplers[0].full_logits:
            logits = np.empty((n_rows, self._geometry.vocab_size), np.float32)
            for rank, reply in zip(dispatch.ranks, replies, strict=True):
                ids = self._vocab_rows[rank]
                logits[:, ids] = self._array(reply, rank, FrameType.LOGITS, (n_rows, len(ids)))
            if not np.isfinite(logits).all():
                raise _NonFiniteError("an agent sent logits with inf or NaN")
            return logits
        by_rank = []
        for rank, reply in zip(dispatch.ranks, replies, strict=True):
            if reply.header.type != FrameType.TOP:
                raise self._unexpected(rank, reply, "TOP")
            payload = memoryview(reply.buffer)[payload_offset(reply.header.n_rows) :]
            top = read_top_rows(payload[: reply.header.payload_bytes], n_rows)
            if not all(np.isfinite(t.log_sum_exp) for t in top):
                raise _NonFiniteError(f"agent {self._names[rank]!r} sent logits with inf or NaN")
            by_rank.append(top)
        return [list(tops) for tops in zip(*by_rank, strict=True)]

    def _array(
        self, reply: Reply, rank: int, kind: FrameType, shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """Return a reply's payload as an array of the shape that was asked for."""
        header = reply.header
        # Logits always travel as f32: they are compared between agents.
        f16 = header.wire == Wire.F16 and kind != FrameType.LOGITS
        dtype = np.dtype(np.uint16 if f16 else np.float32)
        count = shape[0] * shape[1]
        if header.type != kind or header.payload_bytes != count * dtype.itemsize:
            raise self._unexpected(rank, reply, kind.name)
        offset = payload_offset(header.n_rows)
        return np.frombuffer(reply.buffer, dtype, count, offset).reshape(shape)

    def _unexpected(self, rank: int, reply: Reply, wanted: str) -> RemoteError:
        h = reply.header
        return RemoteError(
            f"agent {self._names[rank]!r} answered {h.type.name} with {h.n_rows} rows and "
            f"{h.payload_bytes} bytes where {wanted} was asked for; use one headwise release "
            f"on all boards"
        )

    def _payload(self, wire: Wire, n_rows: int) -> npt.NDArray[Any]:
        """Return the frame's payload as an array (n_rows, D) of the wire type."""
        view = self._views.get((wire, n_rows))
        if view is None:
            d = self._geometry.hidden_size
            dtype = np.uint16 if wire == Wire.F16 else np.float32
            offset = payload_offset(n_rows)
            view = np.frombuffer(self._frame, dtype, n_rows * d, offset).reshape(n_rows, d)
            self._views[wire, n_rows] = view
        return view

    def _header(self, kind: FrameType, wire: Wire) -> Header:
        return Header(kind, wire, self._epoch, self._run_id, self._link.next_seq())


def _token_ids(vocab: tuple[AtomRange, ...], geometry: Geometry) -> npt.NDArray[np.int64]:
    """Return the token ids of a member's vocab rows in their order."""
    size = VOCAB_ROWS_PER_ATOM
    parts = [np.arange(i * size, min((i + 1) * size, geometry.vocab_size)) for i in indices(vocab)]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
