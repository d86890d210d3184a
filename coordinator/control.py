"""The control channel: a thread that owns its ROUTER and keeps the register of agents.

The decisions are `membership`'s; this file turns messages and the clock into its events and
carries its actions out. Other threads ask through the methods of `register`, and send through an
inproc pair, so that the socket never crosses threads.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import zmq

from agent.bell import Bell
from agent.ids import AgentName, Epoch, RunId
from agent.messages import (
    Assignment,
    CoordinatorMessage,
    ProbeLink,
    Refused,
    Release,
    Shutdown,
    Welcome,
    encode,
)
from agent.migration_messages import MoveOrder
from agent.sockets import CONTROL, bind_port, set_options
from agent.threads import NamedThread
from agent.versions import our_versions
from coordinator.front_door import FrontDoor
from coordinator.gate import Gate
from coordinator.identity import LinkSecrets
from coordinator.membership import Membership
from coordinator.membership_events import (
    Action,
    Assigned,
    BecameReady,
    Event,
    LinkLost,
    LoadFailed,
    Lost,
    Refuse,
    Released,
    Reported,
    Stuck,
    Tick,
    Welcomed,
)
from coordinator.probes import Probes
from coordinator.probing import PROBE_BYTES
from coordinator.refusals import Refusals
from coordinator.register import AWAITED_S, POLL_S, Register
from kernels.errors import AgentLostError, RemoteError

__all__ = ["Control"]

log = logging.getLogger(__name__)

# A frozen board, for which a text waits, is noticed after three of them and a half.
HEARTBEAT_S = 0.4
# How late the heartbeats of a local process that is not stopped may be: a machine with as many busy
# processes as ours and others can leave one without a processor for seconds.
LOCAL_SILENCE_S = 15.0
STOP_S = 2.0
FAREWELL_S = 0.5
# How often agents are looked after while nobody waits for any of them.
IDLE_S = 0.4
# What whoever drives a migration is woken for, besides its reports.
NEWS = (Welcomed, BecameReady, LoadFailed, Lost)


class Control(Register):
    """The control channel of one run.

    Args:
        context: the ZeroMQ context.
        endpoint: where to bind; a tcp endpoint with port `*` takes a free one.
        run_id: number of this run.
        hot_port: told to agents in WELCOME.
        bulk_port: likewise.
        gate: whose keys belong to whom; None: links have no keys.
        on_end: called from the thread when an agent is gone, with what its link had been given.
        probes: when links are told to measure themselves; None: never.
        local: whether all agents are processes of this machine. They are missed when they end or
            are stopped; if one is silent besides, that is for want of a processor.

    Attributes:
        port: the bound port.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        run_id: RunId,
        hot_port: int,
        bulk_port: int,
        gate: Gate | None = None,
        on_end: Callable[[LinkSecrets], None] = lambda _: None,
        probes: Probes | None = None,
        local: bool = False,
    ) -> None:
        versions = our_versions()
        starved_silence_s = LOCAL_SILENCE_S if local else 0.0
        super().__init__(Membership(versions, HEARTBEAT_S, starved_silence_s=starved_silence_s))
        self._welcome = Welcome(run_id, hot_port, bulk_port, HEARTBEAT_S, versions)
        self._socket = context.socket(zmq.ROUTER)
        set_options(self._socket, CONTROL, gate.curve if gate else None)
        self.port = bind_port(self._socket, endpoint)
        how = "--join FILE" if gate else f"--coordinator tcp://HOST:{self.port}"
        self.how_to_join = f"start others with `headwise agent {how}`"
        self._door = FrontDoor(context, self._socket, gate, on_end)
        self._tick_s = 0.0
        self._bell = Bell()
        self._on_awaited = self._bell.ring
        if gate is not None:
            gate.on_change = self._bell.ring
        self._refusals = Refusals()
        self._probes = probes
        self._n_unread = self._n_mishaps = 0
        pipe = f"inproc://control-{id(self)}"
        self._inner = context.socket(zmq.PAIR)
        self._inner.bind(pipe)
        self._outer = context.socket(zmq.PAIR)
        self._outer.setsockopt(zmq.SNDTIMEO, 5000)
        self._outer.connect(pipe)
        self._thread = NamedThread(self._run, "control")
        self._thread.start()

    @property
    def n_dropped(self) -> int:
        """Messages that were unreadable or came from the wrong sender."""
        return self._door.n_dropped

    def link_secrets(self, names: Sequence[AgentName]) -> list[LinkSecrets]:
        """Return what the links of agents that are here were given, in the order of `names`.

        Raises:
            AgentLostError: an agent is gone.
        """
        with self._changed:
            given = {name: self._door.secrets_of(name) for name in names}
        for name, secrets in given.items():
            if secrets is None:
                raise AgentLostError(f"agent {name!r} is gone; it cannot be given work", name)
        return [secrets for secrets in given.values() if secrets is not None]

    def assign(self, told: Mapping[AgentName, Assignment]) -> None:
        """Send each agent its part of a plan."""
        for name, assignment in told.items():
            self._tell(name, assignment, Assigned(name, assignment.epoch))

    def release(self, epoch: Epoch) -> None:
        """Tell every agent that holds an epoch to free it."""
        with self._changed:
            holders = [a.name for a in self._membership.alive() if a.holds(epoch)]
        for name in holders:
            # Whoever has gone since has freed it.
            with contextlib.suppress(AgentLostError):
                self._tell(name, Release(epoch), Released(name, epoch))

    def lose(self, name: AgentName, reason: str) -> None:
        """Take an agent for gone that does not answer, and end its links; it may dial again."""
        with self._changed:
            agent = self._membership.get(name)
            if agent is None or not agent.alive:
                return
            self._take(LinkLost(agent.link, reason))
            self._outer.send_multipart([agent.link, b""])

    def order(self, name: AgentName, order: MoveOrder) -> None:
        """Send an agent an order of a migration.

        Raises:
            AgentLostError: it is gone.
        """
        self._tell(name, order, None)

    def close(self, leave: bool = False) -> None:
        """Tell the agents that the run is over and end the thread; `leave` asks them to exit."""
        if not self._thread.is_alive():
            self._outer.close(linger=0)
            return
        with self._changed:
            names = [a.name for a in self._membership.alive()]
        for name in names:
            with contextlib.suppress(RemoteError):
                self._tell(name, Shutdown("the coordinator has finished", leave), None)
        # Agents say BYE; a link that closed at once might never deliver the message.
        with self._changed:
            self._changed.wait_for(lambda: not self._membership.alive(), FAREWELL_S)
        self._outer.send_multipart([b"", b""])
        self._thread.join(STOP_S)
        self._outer.close(linger=0)

    def _tell(self, name: AgentName, message: CoordinatorMessage, event: Event | None) -> None:
        """Hand a message to the thread, and note it as an event before it can be answered."""
        with self._changed:
            self._raise_fault()
            agent = self._membership.get(name)
            if agent is None or not agent.alive:
                raise AgentLostError(f"agent {name!r} is gone; it cannot be given work", name)
            if event is not None:
                self._membership.on_event(event, time.monotonic())
            self._outer.send_multipart([agent.link, encode(message)])

    # The thread.

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as e:
            log.exception("control thread ended")
            with self._changed:
                self._fault = f"internal error in the control thread: {e!r}"
                self._changed.notify_all()
        finally:
            self._socket.close(linger=500)
            self._inner.close(linger=0)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._inner, zmq.POLLIN)
        poller.register(self._bell.fd, zmq.POLLIN)
        running = True
        while running:
            wait_s = max(0.0, self._tick_s - time.monotonic())
            ready = dict(poller.poll(math.ceil(1000 * wait_s)))
            if self._inner in ready:
                link, data = self._inner.recv_multipart()
                running = bool(link)
                if data:
                    self._send(link, data)
                elif running:
                    self._evict(link)
            if self._socket in ready:
                with self._contained("a message"):
                    self._receive()
            if self._bell.fd in ready:
                self._bell.quiet()
                self._tick_s = 0.0
            if time.monotonic() >= self._tick_s:
                self._tick()

    def _receive(self) -> None:
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return  # its link was evicted meanwhile
        got = self._door.read(frames, self._holder)
        if isinstance(got, Refuse):
            self._carry_out(got)
        elif got is not None:
            self._take(got)

    def _holder(self, link: bytes) -> AgentName | None:
        agent = self._membership.by_link(link)
        return agent.name if agent else None

    def _tick(self) -> None:
        now_s = time.monotonic()
        with self._changed:
            alive = [(a.name, a.link) for a in self._membership.alive()]
            awaited = [n for n, asked_s in self._awaited_s.items() if now_s - asked_s < AWAITED_S]
        self._tick_s = now_s + (POLL_S if awaited or self._is_watching else IDLE_S)
        for name, link in alive:
            reason = self._exit_reason(name)
            if reason:
                self._take(LinkLost(link, reason))
        stopped = [name for name, _ in alive if self._is_stopped(name)]
        self._take(Tick(frozenset(awaited), frozenset(stopped)))
        for given in self._door.newly_invalid():
            # libzmq looks at keys when a link begins, and never again.
            reason = "its key was revoked or replaced"
            self._send(given.link, encode(Refused(reason, retry=False)))
            self._take(LinkLost(given.link, reason))
            self._evict(given.link, last_words=True)
        with self._contained("measuring a link"):
            self._probe(now_s)

    def _probe(self, now_s: float) -> None:
        """Tell at most one agent to measure its link, if nobody has anything else to do."""
        if self._probes is None:
            return
        with self._changed:
            name = self._probes.choose(self._membership.alive(), now_s)
            given = self._door.secrets_of(name) if name else None
        if given is not None:
            log.info("agent=%s measures its link", given.name)
            self._probes.grant(given)
            self._send(given.link, encode(ProbeLink(PROBE_BYTES)))

    def _take(self, event: Event) -> None:
        with self._changed:
            actions = self._membership.on_event(event, time.monotonic())
            for action in actions:
                with self._contained(type(action).__name__):
                    self._carry_out(action)
            if actions:
                self._changed.notify_all()
            if any(isinstance(action, NEWS) for action in actions):
                self._is_news = True
                self.on_news()

    def _carry_out(self, action: Action) -> None:
        """Carry an action out, under the lock that others wait for: nothing here may block."""
        match action:
            case Welcomed(link, name):
                log.info("agent=%s joined", name)
                given = self._door.welcome(name, link)
                welcome = msgspec.structs.replace(
                    self._welcome, hot_route=given.hot_route, bulk_token=given.bulk_token
                )
                self._send(link, encode(welcome))
            case Refuse(link, reason, retry):
                to_answer, to_log = self._refusals.note(link, time.monotonic())
                if to_log:
                    n_refused = self._refusals.n_refused
                    log.warning("refused an agent: %s (%d refused so far)", reason, n_refused)
                if to_answer:
                    self._send(link, encode(Refused(reason, retry)))
            case BecameReady(name, ready):
                log.info(
                    "agent=%s ready epoch=%d weights_bytes=%d pulled_bytes=%d seconds=%.2f",
                    name, ready.epoch, ready.weights_bytes, ready.pulled_bytes, ready.seconds,
                )  # fmt: skip
            case LoadFailed(name, epoch, reason):
                self._failures[name] = (epoch, reason)
            case Lost(name, link, epoch, reason, silent):
                log.info("agent=%s lost epoch=%d: %s", name, epoch, reason)
                self._losses.append((name, reason))
                self._door.on_lost(name, link)
                if silent:
                    self._door.hang_up(link)
            case Stuck(name, for_s):
                log.warning("agent=%s has finished no step for %.0f s", name, for_s)
            case Reported(name, report):
                self._keep_report(name, report)

    def _send(self, link: bytes, data: bytes) -> None:
        """Send without waiting; a link that is closed, or whose queue is full, is lost."""
        try:
            self._socket.send_multipart([link, data], zmq.NOBLOCK)
        except zmq.Again:
            self._n_unread += 1
            if self._n_unread & (self._n_unread - 1) == 0:
                n_ended = self._n_unread
                log.warning("control: ended a link that is not read (%d so far)", n_ended)
            self._take(LinkLost(link, "it does not read its control link: the queue is full"))
            self._evict(link)
        except zmq.ContextTerminated:
            raise
        except zmq.ZMQError as e:
            self._take(LinkLost(link, f"its control link is closed ({e.strerror})"))

    def _evict(self, link: bytes, last_words: bool = False) -> None:
        with self._contained("ending a link"):
            self._door.evict(link, last_words)

    @contextlib.contextmanager
    def _contained(self, what: str) -> Iterator[None]:
        """Keep what goes wrong with one link from ending the thread that serves them all."""
        try:
            yield
        except zmq.ContextTerminated:
            raise
        except Exception:
            self._n_mishaps += 1
            if self._n_mishaps & (self._n_mishaps - 1) == 0:
                n = self._n_mishaps
                log.exception("control: %s went wrong (%d such errors so far)", what, n)
