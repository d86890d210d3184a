"""The hot loop: receive a frame, run the kernels, send the reply. Read it top-down.

One thread owns the socket and all buffers. Per STEP it makes one receive into a fixed buffer,
checks the header, looks views up, calls kernels, and sends once; it takes no locks, allocates
next to nothing and writes no log. Frames like the one before are served by compiled code
(`phase_loop`) without coming here at all. Other threads reach it only through `adopt`, `drop`,
`move` and `stop`, which it looks at between frames; what a migration does with the pools is in
`hot_rows`.

Who gets a reply is data: the holders of the residual. In a star the coordinator is the only one;
in a mesh every member is, and each PARTIAL goes to all of them.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Callable

import numpy as np
import zmq

from agent.cores import claimed_core, pinned
from agent.curve import ClientCurve
from agent.emulation import Emulation, Pace, precise_sleeps
from agent.events import Event, Joined, LinkLost, LoadFailed, LoadKey, PoolJob
from agent.frames import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    Flag,
    FrameType,
    Header,
    Phase,
    Wire,
    pack_header,
    payload_offset,
    read_header,
)
from agent.hot_rows import WAKE_S, HotRows
from agent.ids import Epoch, RunId, Seq
from agent.kv_ops import read_kv_ops
from agent.member import Member
from agent.mirror_pool import MirrorPool
from agent.phase_loop import PhaseLoop
from agent.samples import Samples
from agent.sockets import HOT, set_options
from agent.stepper import Stepper
from agent.threads import NamedThread
from agent.zmq_calls import find_calls
from kernels.errors import HeadwiseError, WireError

__all__ = ["HotLoop"]

log = logging.getLogger(__name__)

SEND_S = 2.0
CONNECT_S = 5.0
MAX_ERROR_BYTES = 1024
# The newest calls of a second, of which a heartbeat tells the speed.
KEPT_CALLS = 256

HotSocket = zmq.Socket[bytes]


class HotLoop:
    """The hot link of one run.

    Args:
        endpoint: the coordinator's hot port.
        routing_id: how the coordinator addresses this agent.
        run_id: frames of other runs are dropped.
        post: takes events for the control thread; safe to call from this loop's thread. A loop
            that was asked to stop posts nothing more.
        after: the loop of a former run, which may still be inside a kernel; this one waits for
            it, because both use the same worker threads.
        pin: keep the thread on a core of its own, if one is free.
        curve: this agent's keys; None speaks in clear.
        emulation: the board that it shall be as slow as; None as fast as it is.

    Attributes:
        run_id: the run that it serves.
        n_stale: frames of another run or epoch, dropped silently.
        n_malformed: frames that break docs/wire.md, dropped.
        samples: bytes and nanoseconds of kernel calls with one row.
    """

    def __init__(
        self,
        endpoint: str,
        routing_id: bytes,
        run_id: RunId,
        post: Callable[[Event], None],
        after: "HotLoop | None" = None,
        pin: bool = False,
        curve: ClientCurve | None = None,
        emulation: Emulation | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._routing_id = routing_id
        self.run_id = run_id
        self._post = post
        self._after = after
        self._pin = pin
        self._curve = curve
        self._pace = Pace(emulation) if emulation else None
        self.samples = Samples(KEPT_CALLS)
        self._inbox = np.empty(MAX_FRAME_BYTES, np.uint8)
        self._outbox = np.empty(MAX_FRAME_BYTES, np.uint8)
        self._inbox_bytes = self._inbox.data
        self._outbox_bytes = self._outbox.data
        self._members: dict[Epoch, Member] = {}
        self._steppers: dict[Epoch, Stepper] = {}
        self._holders: tuple[HotSocket, ...] = ()
        # The members' and those of mirrors, in which nothing is computed.
        self._pools: dict[Epoch, Member | MirrorPool] = {}
        self._wishes: deque[tuple[Epoch, Member | MirrorPool | None]] = deque()
        self._rows = HotRows(self._pools, self._contexts_changed, self._tell)
        self._stopping = False
        self.n_stale = self.n_malformed = self._n_steps = self._n_unsent = 0
        self._phases: PhaseLoop | None = None
        self._thread = NamedThread(self._run, "hot")

    def start(self) -> None:
        """Start the thread, which dials the coordinator."""
        self._thread.start()

    def adopt(self, epoch: Epoch, member: Member | MirrorPool) -> None:
        """Serve frames of one more epoch; posts Joined once its HELLO frame is sent.

        Of a mirror there are none: its pool is there for rows that come and go.
        """
        self._wish(epoch, member)

    def drop(self, epoch: Epoch) -> None:
        """Stop serving an epoch and forget its member."""
        self._wish(epoch, None)

    def move(self, job: PoolJob) -> None:
        """Do a migration's work on a pool; posts how it went."""
        self._rows.add(job)
        self._call()

    @property
    def is_moving(self) -> bool:
        """Whether rows are on their way that somebody waits for: those of a mirror are not."""
        return self._rows.expected

    def end_moves(self) -> None:
        """Be quick to do such work no more: the migration is over."""
        self._rows.expect_none()
        self._call()

    def _wish(self, epoch: Epoch, member: Member | MirrorPool | None) -> None:
        self._wishes.append((epoch, member))
        self._call()

    def stop(self) -> None:
        """Ask the thread to end after its current frame."""
        self._stopping = True
        if self._pace is not None:
            self._pace.ended = True
        self._call()

    def _call(self) -> None:
        """Have the thread look round soon."""
        if self._phases is not None:
            self._phases.call()
        self._rows.ring()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread's end; False if it is still inside a kernel after timeout_s."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def n_steps(self) -> int:
        """Finished steps, the progress that heartbeats report."""
        return self._n_steps + (self._phases.n_steps if self._phases else 0)

    @property
    def n_unsent(self) -> int:
        """Replies that found no link."""
        return self._n_unsent + (self._phases.n_unsent if self._phases else 0)

    @property
    def n_free_pages(self) -> int:
        """KV pages per group that are free in the newest epoch."""
        members = list(self._members.items())
        return max(members)[1].kv.n_free_pages if members else 0

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV pages that contexts have written to, of all epochs."""
        pools = {id(pool.kv): pool.kv for pool in list(self._pools.values())}
        return sum(pool.n_used_bytes for pool in pools.values())

    # The loop.

    def _run(self) -> None:
        if self._after is not None:
            self._after.join()
            self._after = None
        with contextlib.ExitStack() as place:
            if self._pin:
                core = place.enter_context(claimed_core())
                # Before the context starts its I/O thread, which then keeps to the same core.
                place.enter_context(pinned(core))
                log.info("hot thread core=%s", core)
            self._dial()

    def _dial(self) -> None:
        context: zmq.Context[HotSocket] = zmq.Context()
        socket = context.socket(zmq.DEALER)
        try:
            set_options(socket, HOT, self._curve)
            socket.setsockopt(zmq.ROUTING_ID, self._routing_id)
            socket.setsockopt(zmq.RCVTIMEO, int(1000 * WAKE_S))
            socket.setsockopt(zmq.SNDTIMEO, int(1000 * CONNECT_S))
            socket.connect(self._endpoint)
            self._holders = (socket,)
            calls = find_calls()
            if self._pace is not None:
                precise_sleeps()
            elif calls is not None:
                self._phases = PhaseLoop(
                    calls, socket, self._holders, self._inbox, self._outbox, self.samples.ring
                )
            self._serve(socket)
        except Exception as e:
            # Without its hot loop an agent is of no use: dial again and start over.
            log.exception("hot loop ended endpoint=%s", self._endpoint)
            self._tell(LinkLost(f"the hot loop failed: {e!r}"))
        finally:
            self._rows.close()
            for epoch in list(self._pools):
                self._forget(epoch)
            socket.close(linger=0)
            context.term()

    def _serve(self, socket: HotSocket) -> None:
        wishes, rows = self._wishes, self._rows
        while not self._stopping:
            try:
                if rows.may_receive(socket):
                    self._on_frame(self._receive(socket))
                    rows.idle = False
            except zmq.Again:
                rows.idle = True
            except WireError as e:
                self._drop_malformed(e)
            while wishes:
                self._grant(*wishes.popleft())
            rows.do_next()

    def _receive(self, socket: HotSocket) -> int:
        """Return the size of the next frame that Python must serve, which is in the inbox."""
        phases = self._phases
        # Compiled code stays with a step; when work waits, a frame is all there is time for.
        if phases is None or not phases.ready or self._rows.waiting:
            return socket.recv_into(self._inbox_bytes)
        return phases.next_frame()

    def _on_frame(self, n_bytes: int) -> None:
        """Answer one frame; raises WireError if it is no frame of the hot channel."""
        header = read_header(self._inbox_bytes, n_bytes)
        stepper = self._steppers.get(header.epoch)
        if stepper is None or header.run_id != self.run_id:
            self.n_stale += 1
            return
        kind = header.type
        if kind is FrameType.PING:
            return
        if self._phases is not None:
            self._phases.forget()
        if kind is not FrameType.STEP and kind is not FrameType.KV:
            raise WireError(f"hot frame of type {kind.name} is not for an agent")
        served = False
        try:
            if kind is FrameType.KV:
                self._change_contexts(header)
                return
            n_reply_bytes = stepper.step(header)
            self._n_steps += 1
            served = True
        except HeadwiseError as e:
            n_reply_bytes = self._error(header, str(e))
        except Exception as e:
            # The request fails with this text; the agent lives on for the next one.
            log.exception("step failed epoch=%d layer=%d", header.epoch, header.layer)
            n_reply_bytes = self._error(header, f"internal error: {e!r}")
        self._send(self._outbox_bytes[:n_reply_bytes])
        if served and self._phases is not None:
            stepper.teach(self._phases, header, n_bytes, n_reply_bytes)

    def _send(self, frame: memoryview) -> None:
        for holder in self._holders:
            try:
                holder.send(frame)
            except zmq.Again:
                self._n_unsent += 1

    # Everything below runs once a token or less.

    def _change_contexts(self, header: Header) -> None:
        self._contexts_changed()
        start = payload_offset(header.n_rows)
        ops = read_kv_ops(self._inbox_bytes[start : start + header.payload_bytes])
        self._members[header.epoch].kv.apply(ops)

    def _error(self, asked: Header, text: str) -> int:
        """Write an ERROR frame about `asked` into the outbox and return its size in bytes."""
        payload = text.encode()[:MAX_ERROR_BYTES]
        end = HEADER_BYTES + len(payload)
        self._write_header(FrameType.ERROR, asked.epoch, asked, len(payload))
        self._outbox_bytes[HEADER_BYTES:end] = payload
        return end

    def _write_header(
        self, kind: FrameType, epoch: Epoch, asked: Header | None = None, n_bytes: int = 0
    ) -> None:
        seq, layer, phase = (
            (asked.seq, asked.layer, asked.phase) if asked else (Seq(0), 0, Phase.ATTENTION)
        )
        rank = self._members[epoch].assignment.rank
        header = Header(
            kind,
            Wire.F32,
            epoch,
            self.run_id,
            seq,
            layer,
            phase,
            Flag.NONE,
            rank,
            0,
            0,
            0,
            n_bytes,
        )
        pack_header(self._outbox_bytes, header)

    def _grant(self, epoch: Epoch, member: Member | MirrorPool | None) -> None:
        if self._phases is not None:
            # What it knows may be of this epoch, and HELLO is written where its reply lies.
            self._phases.forget()
        if member is None:
            self._forget(epoch)
            return
        self._pools[epoch] = member
        if isinstance(member, MirrorPool):
            self._tell(Joined(LoadKey(self.run_id, epoch)))
            return
        self._members[epoch] = member
        self._steppers[epoch] = Stepper(member, self._inbox, self._outbox, self.samples, self._pace)
        self._write_header(FrameType.HELLO, epoch)
        try:
            for holder in self._holders:
                holder.setsockopt(zmq.SNDTIMEO, int(1000 * CONNECT_S))
                holder.send(self._outbox_bytes[:HEADER_BYTES])
                holder.setsockopt(zmq.SNDTIMEO, int(1000 * SEND_S))
        except zmq.Again:
            reason = (
                f"the hot port {self._endpoint} does not answer within {CONNECT_S:.0f} s; open it"
            )
            self._tell(LoadFailed(LoadKey(self.run_id, epoch), reason))
            return
        self._tell(Joined(LoadKey(self.run_id, epoch)))

    def _forget(self, epoch: Epoch) -> None:
        """Drop everything that keeps an epoch's KV pages in memory."""
        if self._phases is not None:
            self._phases.forget()
        self._steppers.pop(epoch, None)
        self._pools.pop(epoch, None)
        member = self._members.pop(epoch, None)
        if member is not None:
            member.kernels.detach()

    def _contexts_changed(self) -> None:
        """Take in that contexts have got other pages, perhaps in a pool that two epochs share."""
        for stepper in self._steppers.values():
            stepper.forget_rows()
        if self._phases is not None:
            self._phases.forget()

    def _tell(self, event: Event) -> None:
        # The control thread has moved on from a stopped loop, perhaps to the next link.
        if not self._stopping:
            self._post(event)

    def _drop_malformed(self, why: WireError) -> None:
        self.n_malformed += 1
        if self.n_malformed & (self.n_malformed - 1) == 0:
            log.warning("hot: dropped frame: %s (%d dropped so far)", why, self.n_malformed)
