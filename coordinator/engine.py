"""One step through the cluster: the coordinator's hot path, top to bottom.

A step takes rows of embeddings through every layer and, for the rows that need it, through the
vocabulary. In a star the coordinator is the only holder of the residual: each phase sends it to
the members that have atoms for it, adds their partial sums in rank order and goes on. The list
of dispatches comes from `schedule`, sockets from `hot_link`; sampling happens in `generation`.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

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
    repack_request,
    write_rows,
)
from agent.ids import AgentName, Epoch, Rank, RunId, Seq
from agent.kv_ops import KvOp, KvOpCode, pack_kv_ops
from agent.vocab_payload import SamplerRow, TopRow, pack_sampler_rows
from agent.zmq_calls import find_calls
from coordinator.exchanges import Exchanges
from coordinator.hot_link import HotLink, Reply
from coordinator.limits import Bound, Limits
from coordinator.overheads import StepLog
from coordinator.phase_walk import PhaseWalk
from coordinator.plan import Plan
from coordinator.replies import ReplyReader, WrongNumberError
from coordinator.rows import Rows, StepTimes
from coordinator.schedule import Dispatch, half_layers_end, make_schedule
from coordinator.token_frame import TokenFrame
from coordinator.walk_phases import Stop
from coordinator.workspace import Workspace
from kernels.errors import FaultyAgentError, RemoteError
from kernels.exchange import add_partials, encode_flat
from kernels.layout import Geometry
from kernels.wire_floats import decode_f16

__all__ = ["Engine"]

log = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]

# A member that is alive but silent for this long fails the request. A phase normally takes
# milliseconds; a board that pages its weights in from an SD card may take seconds once.
PHASE_TIMEOUT_S = 60.0
# Between the tokens of a text its user's program runs; pulls stay narrow for that long.
IDLE_AFTER_S = 0.5
LONGEST_STEP_S = 10.0
# Exchanges after which a step looks up from its work, if anybody has asked for that.
BETWEEN_DISPATCHES = 8


class Engine:
    """Carries rows through one plan.

    Args:
        link: the hot link of the plan, joined by every member.
        plan: a checked plan.
        geometry: the model's shapes.
        run_id: number of this run.
        epoch: the plan's epoch.
        max_rows: most rows of one step.
        bound: see `Limits`.

    Attributes:
        times: where the time of steps went.
        exchanges: how long frames are under way.
        log: what steps of one row took besides kernels.
        phase_s: what an exchange of the last step took on average.
        between: called a few times within each step, while no reply is awaited.
    """

    def __init__(
        self,
        link: HotLink,
        plan: Plan,
        geometry: Geometry,
        run_id: RunId,
        epoch: Epoch,
        max_rows: int,
        bound: Bound = lambda *_: math.inf,
    ) -> None:
        self._link = link
        self._reader = ReplyReader(link, plan, geometry)
        self._names = [member.agent for member in plan.members]
        self._n_members = len(self._names)
        self._schedule = make_schedule(plan, geometry)
        self._wire = Wire.F16 if plan.wire == "f16" else Wire.F32
        self._run_id = run_id
        self._epoch = epoch
        self._hidden_size = geometry.hidden_size
        self.max_rows = max_rows
        self._workspaces: dict[int, Workspace] = {}
        self._order = np.zeros(self._n_members, np.int32)
        self._limits = Limits(self._schedule, self._n_members, bound)
        # One inbox seen as each wire type.
        self._inboxes: dict[Wire, npt.NDArray[Any]] = {
            Wire.F16: link.inbox.view(np.uint16),
            Wire.F32: link.inbox.view(np.float32),
        }
        self.times, self.exchanges = StepTimes(), Exchanges(self._n_members)
        self.log = StepLog(self._schedule, geometry.hidden_size, self._wire)
        self._busy_until_s = 0.0
        self.phase_s = 0.0
        self.between: Callable[[], object] | None = None
        calls = find_calls()
        self._phases: PhaseWalk | None = None
        if calls is not None:
            self._phases = PhaseWalk(
                calls, link.address, link.routes, self._schedule, link.inbox, self._limits.array,
                self.exchanges.trips,
            )  # fmt: skip
        self._half_layers_end = half_layers_end(self._schedule)
        first, header = self._schedule[0], self._header(FrameType.STEP, self._wire)
        self._token = TokenFrame(header, first) if first.vocab_after else None
        self._load_kernels()
        if not any(dispatch.phase is Phase.ATTENTION for dispatch in self._schedule):
            self._phases = None  # loaded for plans to come; this one has no half layers to walk

    def _load_kernels(self) -> None:
        """Load what the first step needs while nobody waits for a token yet."""
        work = self._workspace(1)
        for wire in (self._wire, Wire.F32):
            self._encode(work, wire)
            add_partials(work.flat, self._inboxes[wire], self._order[:0], 0, self._limits.array[0])
            if self._phases is not None:
                self._phases.begin(work, wire, self._header(FrameType.STEP, wire))
                self._phases.walk(0, 0, Seq(0))

    @property
    def ended(self) -> bool:
        """Whether its plan is in force no longer."""
        return self._link.ended

    @property
    def is_busy(self) -> bool:
        """Whether a step runs or one ended just now; from any thread."""
        return time.monotonic() < self._busy_until_s

    def control_kv(self, ops: Sequence[KvOp], names: Collection[AgentName] | None = None) -> None:
        """Send operations on contexts to members; they precede all later steps.

        A member that cannot carry one out makes the next step fail with its reason.

        Args:
            ops: what to do.
            names: which members; None = all.

        Raises:
            AgentLostError: a member's link is closed.
        """
        self._check_in_force()
        payload = pack_kv_ops(ops)
        frame = bytearray(HEADER_BYTES + len(payload))
        header = self._header(FrameType.KV, Wire.F32)._replace(payload_bytes=len(payload))
        pack_header(frame, header)
        frame[HEADER_BYTES:] = payload
        if any(op.code != KvOpCode.RELEASE for op in ops):
            self._link.watch(header.seq)
        for rank, name in enumerate(self._names):
            if names is None or name in names:
                self._link.send(Rank(rank), frame)

    def step(
        self,
        x: F32,
        rows: Rows,
        samplers: Sequence[SamplerRow] = (),
        times: StepTimes | None = None,
    ) -> list[list[TopRow]] | F32:
        """Take rows through all layers, and the last len(samplers) of them to the vocabulary.

        Args:
            x: embeddings of the rows, (n_rows, D) f32, unchanged.
            rows: context and position of each row.
            samplers: what the vocab holders need for each of the last rows.
            times: where to add up the time of this step; None keeps the last one given.

        Returns:
            For each vocab row the holders' best candidates; or, if the samplers ask for full
            logits, an array (len(samplers), V) f32.

        Raises:
            AgentLostError: a member died, froze or was cut off.
            RemoteError: a member reports an error.
            FaultyAgentError: a member's numbers cannot be right in f32 either: not finite, or
                larger than its weights allow.
        """
        self._check_in_force()
        self._busy_until_s = time.monotonic() + LONGEST_STEP_S
        self.times = times or self.times
        started_s = time.perf_counter()
        exchange_s = self.times.exchange_s
        spent_s = self.times.kernels_s + exchange_s
        work = self._workspace(len(x))
        work.x[:] = x
        try:
            answer = self._walk(work, rows, samplers, self._wire)
        except WrongNumberError as e:
            # f16 ends at 65504: rows are idempotent, so the step simply runs again in f32.
            log.warning("step at pos=%d repeated in f32: %s", rows.positions[-1], e)
            if e.dispatch is not None:
                self._limits.doubt(e.dispatch, e.member)
            work.x[:] = x
            try:
                answer = self._walk(work, rows, samplers, Wire.F32)
            except WrongNumberError as again:
                raise FaultyAgentError(
                    f"{again}, with f32 on the wire too; the weights or that agent's memory are "
                    f"damaged: run `headwise cache verify` there, or `headwise verify`",
                    again.agent,
                ) from again
        spent_s = self.times.kernels_s + self.times.exchange_s - spent_s
        self.phase_s = spent_s / max(len(self._schedule), 1)
        own_s = time.perf_counter() - started_s - spent_s
        self.times.coordinator_s += own_s
        self.log.note(len(x), self.times.exchange_s - exchange_s, own_s)
        self.times.n_steps += 1
        now_s = time.monotonic()
        self._busy_until_s = now_s + IDLE_AFTER_S
        self.exchanges.look(now_s)
        return answer

    def _walk(
        self, work: Workspace, rows: Rows, samplers: Sequence[SamplerRow], wire: Wire
    ) -> list[list[TopRow]] | F32:
        if self._token is not None and work.n_rows == len(samplers) == 1:
            return self._walk_token(self._token, work, rows, samplers[0], wire)
        self._pack_step(work, rows, wire)
        at = 0
        while True:
            dispatch, at = self._schedule[at], at + 1
            if self.between is not None:
                self.between()
            if dispatch.phase is Phase.VOCAB:
                break
            if dispatch.vocab_after:
                replies = self._ask_vocab(dispatch, work, samplers, wire)
                return self._reader.answer(replies, samplers)
            if self._phases is not None and dispatch.phase is not Phase.STAGE:
                at = self._walk_phases(self._phases, work, wire, at - 1)
                continue
            self._encode(work, wire)
            repack_request(
                work.frame, self._link.next_seq(), dispatch.layer, dispatch.phase, Flag.NONE
            )
            replies = self._exchange(work.frames[wire], dispatch)
            if dispatch.phase is Phase.STAGE:
                self._read_residual(replies, dispatch, work, wire)
            else:
                self._add_partials(replies, at - 1, work, wire)
        if not samplers:
            return []
        first = work.n_rows - len(samplers)
        tail = self._workspace(len(samplers))
        tail.x[:] = work.x[first:]
        self._pack_step(tail, Rows(rows.kv_ids[first:], rows.positions[first:]), wire)
        replies = self._ask_vocab(dispatch, tail, samplers, wire)
        return self._reader.answer(replies, samplers)

    def _walk_token(
        self, token: TokenFrame, work: Workspace, rows: Rows, sampler: SamplerRow, wire: Wire
    ) -> list[list[TopRow]] | F32:
        """Take one row, which the only dispatch carries all the way, through the plan."""
        if self.between is not None:
            self.between()
        seq, kv_id, position = self._link.next_seq(), rows.kv_ids[0], rows.positions[0]
        frame = token.packed(seq, wire, kv_id, position, sampler, work.flat_read)
        return self._reader.answer(self._exchange(frame, self._schedule[0]), [sampler])

    def _walk_phases(self, phases: PhaseWalk, work: Workspace, wire: Wire, first: int) -> int:
        """Carry out the half layers from dispatch `first` on; return the first one not done.

        Compiled code does it as long as all goes well; what it stumbles over is finished here.
        """
        stop = self._half_layers_end[first]
        if self.between is not None:
            stop = min(stop, first + BETWEEN_DISPATCHES)
        walked = phases.walk(first, stop, self._link.next_seqs(stop - first))
        kernels_s, exchange_s, longest_s = phases.take_times_s()
        times = self.times
        times.kernels_s += kernels_s
        times.exchange_s += exchange_s
        times.longest_dispatch_s = max(times.longest_dispatch_s, longest_s)
        times.n_dispatches += walked.dispatch - first + (walked.why is Stop.WRONG)
        if walked.why is Stop.DONE:
            return stop
        dispatch = self._schedule[walked.dispatch]
        if walked.why is Stop.WRONG:
            raise self._wrong(walked.rank, walked.dispatch)
        slots = phases.slots.tolist()
        replies = self._link.resume(walked, slots, dispatch.ranks, PHASE_TIMEOUT_S)
        self._add_times(replies, time.monotonic() - walked.started_s)
        self._add_partials(replies, walked.dispatch, work, wire)
        return walked.dispatch + 1

    def _exchange(self, frame: memoryview | bytes | bytearray, dispatch: Dispatch) -> list[Reply]:
        """Send a frame to the members of a dispatch, gather their replies, keep the times."""
        asked_s = time.perf_counter()
        replies = self._link.exchange(frame, dispatch.ranks, PHASE_TIMEOUT_S)
        waited_s = time.perf_counter() - asked_s
        self._add_times(replies, waited_s)
        if len(replies) == 1:
            self.exchanges.note(len(frame), replies[0].header, waited_s)
        return replies

    def _add_times(self, replies: list[Reply], waited_s: float) -> None:
        self.times.add(1e-6 * max([reply.header.busy_us for reply in replies]), waited_s)

    def _add_partials(self, replies: list[Reply], at: int, work: Workspace, wire: Wire) -> None:
        """Add the partial sums to the residual, in rank order, in one call."""
        self._reader.check(replies, FrameType.PARTIAL, wire, work.payload[wire].nbytes)
        order = self._order[: len(replies)]
        order[:] = [reply.slot for reply in replies]
        first = HEADER_BYTES // work.payload[wire].itemsize
        n_added = add_partials(work.flat, self._inboxes[wire], order, first, self._limits.array[at])
        if n_added < len(replies):
            raise self._wrong(n_added, at)

    def _encode(self, work: Workspace, wire: Wire) -> None:
        """Write the residual into the frame's payload."""
        if wire is Wire.F16:
            encode_flat(work.flat_read, work.payload[wire])
        else:
            work.payload[wire][:] = work.flat

    # Everything below runs once a step or less.

    def _wrong(self, member: int, at: int) -> WrongNumberError:
        """Return the error that the numbers of a dispatch's n-th member cannot be right."""
        name = self._reader.name(self._schedule[at].ranks[member])
        text = f"agent {name!r} sent {self._limits.excess(at, member)}"
        return WrongNumberError(text, name, at, member)

    def _check_in_force(self) -> None:
        if self._link.closed:
            raise RemoteError("the cluster is closed; start it again")
        if self._link.ended:
            raise RemoteError("the plan was replaced meanwhile; start the request again")

    def _read_residual(
        self, replies: list[Reply], dispatch: Dispatch, work: Workspace, wire: Wire
    ) -> None:
        self._reader.check(replies, FrameType.RESIDUAL, wire, work.payload[wire].nbytes)
        data = self._reader.payload(replies[0])
        if wire is Wire.F16:
            decode_f16(np.frombuffer(data, np.uint16), work.flat)
        else:
            work.flat[:] = np.frombuffer(data, np.float32)
        if not np.isfinite(work.flat).all():
            raise self._reader.non_finite(
                dispatch.ranks[0], f"the residual after the stage from layer {dispatch.layer}"
            )

    def _ask_vocab(
        self, dispatch: Dispatch, work: Workspace, samplers: Sequence[SamplerRow], wire: Wire
    ) -> list[Reply]:
        """Ask for the vocabulary of the last rows; their sampler block follows the residual."""
        self._encode(work, wire)
        block = pack_sampler_rows(list(samplers))
        header = self._header(FrameType.STEP, wire)._replace(
            layer=dispatch.layer, phase=dispatch.phase, n_rows=work.n_rows,
            flags=Flag.VOCAB_AFTER if dispatch.vocab_after else Flag.NONE,
            n_vocab_rows=len(samplers), payload_bytes=work.payload[wire].nbytes + len(block),
        )  # fmt: skip
        pack_header(work.frame, header)
        return self._exchange(bytes(work.frames[wire]) + block, dispatch)

    def _pack_step(self, work: Workspace, rows: Rows, wire: Wire) -> None:
        """Write what all phases of a step have in common: header and row table."""
        header = self._header(FrameType.STEP, wire)._replace(
            n_rows=work.n_rows, payload_bytes=work.payload[wire].nbytes
        )
        pack_header(work.frame, header)
        if self._phases is not None:
            self._phases.begin(work, wire, header)
        write_rows(work.frame, rows.kv_ids, rows.positions)

    def _header(self, kind: FrameType, wire: Wire) -> Header:
        return Header(kind, wire, self._epoch, self._run_id, self._link.next_seq())

    def _workspace(self, n_rows: int) -> Workspace:
        work = self._workspaces.get(n_rows)
        if work is None:
            work = self._workspaces[n_rows] = Workspace(n_rows, self._hidden_size)
        return work
