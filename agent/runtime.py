"""One agent process: the control thread, which owns the control socket and everything's life.

Turns socket, signals and clock into events of `session` and carries its actions out, with the
hot loop and the loader as its hands.
"""

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from types import FrameType as PythonFrame
from typing import NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from agent.address import Address, resolve, routing_id
from agent.ahead import Rest
from agent.curve import ClientCurve
from agent.emulation import Emulation
from agent.events import (
    Action,
    Adopt,
    CancelLoad,
    CloseHot,
    CloseMoves,
    Dial,
    Drop,
    Event,
    Exit,
    HangUp,
    LinkLost,
    Load,
    LoadFailed,
    LoadKey,
    OpenHot,
    OpenMoves,
    PoolJob,
    Probe,
    Received,
    Reserve,
    Send,
    SendBulk,
    SendHeartbeat,
    SpeedChanged,
    Stop,
    Tick,
    Warn,
)
from agent.handshake import MONITORED, Handshake
from agent.hot import HotLoop
from agent.ids import RunId
from agent.loader import Loader, LoaderOptions
from agent.mailbox import Mailbox
from agent.member import Member
from agent.messages import Hello, Welcome, decode_coordinator_message, encode
from agent.mirror_pool import MirrorPool
from agent.move_link import MoveLink
from agent.pulse import Pulse
from agent.resources import usable_cores
from agent.round_trip import round_trip_s
from agent.session import Session
from agent.sockets import CONTROL, set_options
from agent.speedometer import LOOK_S
from kernels.errors import RemoteError, WireError
from kernels.pool import Pool

__all__ = ["Ended", "Runtime"]

log = logging.getLogger(__name__)

LINGER_MS = 500
STOP_S = 0.7
MAX_POLL_S = 1.0

Socket = zmq.Socket[bytes]


class Ended(NamedTuple):
    """How the process ends; `clean` is False while a thread is still inside a kernel."""

    code: int
    reason: str
    clean: bool


class Runtime:
    """Runs an agent until somebody ends it.

    Args:
        hello: what this agent says of itself.
        coordinator: where to dial.
        options: for the loader.
        session: the state machine, fresh.
        pin: keep the hot thread on a core of its own.
        curve: this agent's keys; None speaks in clear.
        emulation: the board that this machine plays; None for what it is.
    """

    def __init__(
        self,
        hello: Hello,
        coordinator: Address,
        options: LoaderOptions,
        session: Session,
        pin: bool = False,
        curve: ClientCurve | None = None,
        emulation: Emulation | None = None,
    ) -> None:
        self._hello = hello
        self._coordinator = coordinator
        self._session = session
        self._pin = pin
        self._curve = curve
        self._emulation = emulation
        self._handshake = Handshake(curve is not None)
        self._mailbox = Mailbox()
        self._context: zmq.Context[Socket] = zmq.Context()
        self._pool = Pool(hello.n_threads, usable_cores())
        rests = Rest(self._n_done)
        self._loader = Loader(self._context, options, self._pool, self._mailbox.post, rests)
        self._pulse = Pulse(self._loader, emulation, hello.n_threads)
        self._routing_id = routing_id(hello.name, hello.instance_id)
        self._peer = coordinator
        self._n_dials = 0
        self._bulk_endpoint, self._bulk_token = "", b""
        self._socket: Socket | None = None
        self._monitor: Socket | None = None
        self._polled: tuple[Socket | None, ...] = ()
        self._poller = zmq.Poller()
        self._link_fd = -1
        self._hot: HotLoop | None = None
        self._last_hot: HotLoop | None = None
        self._moves: MoveLink | None = None
        self._ended: Exit | None = None

    def run(self) -> Ended:
        """Serve until SIGTERM, SIGINT, a refusal or a SHUTDOWN that says leave."""
        with self._signals():
            while self._ended is None:
                for event in self._wait():
                    self._handle(event)
                if self._pulse.is_news(self._hot):
                    self._handle(SpeedChanged())
                self._handle(Tick())
        self._close_moves()
        self._close_hot()
        clean = self._loader.close(STOP_S)
        clean = (self._last_hot is None or self._last_hot.join(STOP_S)) and clean
        self._hang_up()
        if clean:
            self._pool.close()
            self._context.term()
            self._mailbox.close()
        return Ended(self._ended.code, self._ended.reason, clean)

    def _n_done(self) -> int | None:
        """Return how many steps were served, None while head groups move; from any thread."""
        hot = self._hot
        return None if hot is None or hot.is_moving else hot.n_steps

    # Events.

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGTERM and SIGINT into Stop events, and let them wake the poller."""

        def on_signal(number: int, frame: PythonFrame | None) -> None:
            self._mailbox.post(Stop(signal.Signals(number).name))

        before = {n: signal.signal(n, on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
        wake_fd = signal.set_wakeup_fd(self._mailbox.wake_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wake_fd)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self) -> Iterator[Event]:
        """Wait for events, at most until the session wants a Tick, and yield them."""
        moves = self._moves
        of_moves = moves.sockets if moves is not None else ()
        poller = self._poll_for((self._socket, self._monitor, *of_moves))
        most_s = LOOK_S if self._pulse.is_running else MAX_POLL_S
        wait_s = min(max(0.0, self._session.next_due_s() - time.monotonic()), most_s)
        ready = dict(poller.poll(int(1000 * wait_s) + 1))
        yield from self._mailbox.take_nowait()
        if self._socket in ready:
            yield from self._receive(self._socket)
        if self._monitor in ready:
            yield from self._look_at_link(self._monitor)
        if moves is not None and moves is self._moves:
            if any(socket in ready for socket in of_moves):
                yield from moves.receive()
            if moves is self._moves:
                moves.tend(time.monotonic())

    def _poll_for(self, sockets: tuple[Socket | None, ...]) -> zmq.Poller:
        """Return a poller of the mailbox and some sockets; rows in plenty find it made."""
        # By identity: a new socket may be equal to a closed one.
        if list(map(id, sockets)) != list(map(id, self._polled)):
            self._polled, self._poller = sockets, zmq.Poller()
            self._poller.register(self._mailbox.fd, zmq.POLLIN)
            for socket in sockets:
                if socket is not None:
                    self._poller.register(socket, zmq.POLLIN)
        return self._poller

    def _receive(self, socket: Socket | None) -> Iterator[Event]:
        # Another event of this round may have closed the socket.
        while socket is not None and socket is self._socket:
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if len(parts) != 1:
                    raise WireError(f"control message of {len(parts)} parts")
                yield Received(decode_coordinator_message(parts[0]))
            except WireError as e:
                log.warning("control: dropped a message: %s", e)

    def _look_at_link(self, monitor: Socket | None) -> Iterator[Event]:
        while monitor is not None and monitor is self._monitor:
            try:
                told = recv_monitor_message(monitor, zmq.NOBLOCK)
            except zmq.Again:
                return
            if told["event"] == zmq.EVENT_CONNECTED:
                self._link_fd = int(told["value"])
            meant = self._handshake.on_event(told["event"])
            if meant is not None:
                yield meant

    # Actions.

    def _handle(self, event: Event) -> None:
        if self._ended is not None:
            return  # a heartbeat after the goodbye would be one of an agent that is gone
        for action in self._session.on_event(event, time.monotonic()):
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        match action:
            case Send(message):
                self._send(encode(message))
            case SendHeartbeat(epoch):
                round_trip = round_trip_s(self._link_fd)
                self._send(encode(self._pulse.beat(epoch, self._hot, round_trip)))
            case Dial():
                self._dial()
            case HangUp():
                self._hang_up()
            case OpenHot(welcome):
                self._open_hot(welcome)
            case CloseHot():
                self._close_hot()
            case Load(assignment):
                self._loader.load(assignment, self._bulk_endpoint, self._bulk_token)
            case Reserve(key, shape, groups):
                self._loader.reserve(key, shape, groups)
            case CancelLoad(key):
                self._loader.cancel(key)
            case Probe(n_bytes):
                if self._hot is not None:
                    token = self._bulk_token
                    self._loader.probe(self._hot.run_id, self._bulk_endpoint, token, n_bytes)
            case Adopt(key):
                self._adopt(key)
            case Drop(key):
                self._drop(key)
            case OpenMoves() | CloseMoves() | PoolJob() | SendBulk():
                self._carry_out_move(action)
            case Warn(text):
                log.warning("%s", text)
            case Exit():
                self._ended = self._ended or action

    def _carry_out_move(self, action: OpenMoves | CloseMoves | PoolJob | SendBulk) -> None:
        match action:
            case OpenMoves():
                now_s = time.monotonic()
                log.info("moves begin bulk=%s", self._bulk_endpoint)
                self._moves = MoveLink(self._context, self._bulk_endpoint, self._curve, now_s)
            case CloseMoves():
                self._close_moves()
            case PoolJob():
                if self._hot is not None:
                    self._hot.move(action)
            case SendBulk(message, data):
                if self._moves is not None:
                    self._moves.send(message, data)

    def _close_moves(self) -> None:
        moves, self._moves = self._moves, None
        if moves is not None:
            moves.close()
            log.info("moves ended unsent=%d malformed=%d", moves.n_unsent, moves.n_malformed)
        if self._hot is not None:
            self._hot.end_moves()

    def _send(self, data: bytes) -> None:
        try:
            if self._socket is not None:
                self._socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            # The monitor tells the session that the link is gone.
            log.info("control: a message found no link")

    def _dial(self) -> None:
        self._hang_up()
        try:
            self._peer = resolve(self._coordinator, self._n_dials)
        except RemoteError as e:
            self._mailbox.post(LinkLost(str(e)))
            return
        self._n_dials += 1
        self._socket = self._context.socket(zmq.DEALER)
        set_options(self._socket, CONTROL, self._curve)
        self._socket.setsockopt(zmq.ROUTING_ID, self._routing_id)
        self._handshake = Handshake(self._curve is not None)
        self._monitor = self._socket.get_monitor_socket(MONITORED)
        self._socket.connect(str(self._peer))

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=LINGER_MS)
        if self._monitor is not None:
            self._monitor.close(linger=0)
        self._socket = self._monitor = None
        self._link_fd = -1

    def _open_hot(self, welcome: Welcome) -> None:
        self._bulk_endpoint = str(self._peer._replace(port=welcome.bulk_port))
        self._bulk_token = welcome.bulk_token
        endpoint = str(self._peer._replace(port=welcome.hot_port))
        self._hot = HotLoop(
            endpoint, welcome.hot_route or self._routing_id, welcome.run_id, self._mailbox.post,
            after=self._last_hot, pin=self._pin, curve=self._curve,
            emulation=self._emulation,
        )  # fmt: skip
        self._last_hot = self._hot
        self._hot.start()

    def _close_hot(self) -> None:
        hot, self._hot = self._hot, None
        if hot is not None:
            hot.stop()

    def _adopt(self, key: LoadKey) -> None:
        member, hot = self._loader.take(key), self._hot
        if member is None or hot is None or _run_of(member) != hot.run_id:
            self._mailbox.post(LoadFailed(key, "the hot link closed while loading"))
        else:
            hot.adopt(key.epoch, member)

    def _drop(self, key: LoadKey) -> None:
        self._loader.take(key)
        if self._hot is not None and self._hot.run_id == key.run_id:
            self._hot.drop(key.epoch)


def _run_of(member: Member | MirrorPool) -> RunId:
    return member.run_id if isinstance(member, MirrorPool) else member.assignment.run_id
