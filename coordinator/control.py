"""The control channel: a thread that owns its ROUTER and the register of agents.

The decisions are `membership`'s; this file turns messages and the clock into its events and
carries its actions out. Other threads ask through methods that take a lock, and send through an
inproc pair, so that the socket never crosses threads.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec
import zmq

from agent.ids import AgentName, Epoch, RunId
from agent.messages import (
    Assignment,
    CoordinatorMessage,
    Refused,
    Release,
    Shutdown,
    Welcome,
    encode,
)
from agent.sockets import CONTROL, bind_port, set_options
from agent.versions import our_versions
from coordinator.front_door import FrontDoor
from coordinator.gate import Gate
from coordinator.identity import LinkSecrets
from coordinator.membership import Agent, AgentState, Membership
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
    Stuck,
    Tick,
    Welcomed,
)
from coordinator.planner import Offer
from kernels.errors import AgentLostError, RemoteError

__all__ = ["Control"]

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
POLL_S = 0.1
STOP_S = 2.0
FAREWELL_S = 0.5


class Control:
    """The control channel of one run.

    Args:
        context: the ZeroMQ context.
        endpoint: where to bind; a tcp endpoint with port `*` takes a free one.
        run_id: number of this run.
        hot_port: told to agents in WELCOME.
        bulk_port: likewise.
        gate: whose keys belong to whom; None: links have no keys.
        on_end: called from the thread when an agent is gone, with what its link had been given.

    Attributes:
        port: the bound port.
        how_to_join: what to tell users who miss an agent.
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
    ) -> None:
        versions = our_versions()
        self._welcome = Welcome(run_id, hot_port, bulk_port, HEARTBEAT_S, versions)
        self._membership = Membership(versions, HEARTBEAT_S)
        self._changed = threading.Condition()
        self._failures: dict[AgentName, tuple[Epoch, str]] = {}
        self._awaited_s: dict[AgentName, float] = {}
        self._fault = ""
        self._exit_reason: Callable[[AgentName], str] = lambda _: ""
        self._socket = context.socket(zmq.ROUTER)
        set_options(self._socket, CONTROL, gate.curve if gate else None)
        self._socket.setsockopt(zmq.SNDTIMEO, 1000)
        self.port = bind_port(self._socket, endpoint)
        how = "--join FILE" if gate else f"--coordinator tcp://HOST:{self.port}"
        self.how_to_join = f"start others with `headwise agent {how}`"
        self._door = FrontDoor(context, self._socket, gate, on_end)
        pipe = f"inproc://control-{id(self)}"
        self._inner = context.socket(zmq.PAIR)
        self._inner.bind(pipe)
        self._outer = context.socket(zmq.PAIR)
        self._outer.setsockopt(zmq.SNDTIMEO, 5000)
        self._outer.connect(pipe)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def watch(self, exit_reason: Callable[[AgentName], str]) -> None:
        """Ask `exit_reason` now and then whether the process of a local agent has ended."""
        self._exit_reason = exit_reason

    def offers(self) -> list[Offer]:
        """Return what each agent that is here offers, by name."""
        with self._changed:
            return [
                Offer(a.name, a.hello.memory_bytes, a.hello.bytes_per_s, a.hello.n_threads)
                for a in self._membership.alive()
            ]

    def agents(self) -> list[Agent]:
        """Return a copy of what is known of each agent, those that are gone included, by name.

        Raises:
            RemoteError: the thread that keeps the register has ended.
        """
        with self._changed:
            self._raise_fault()
            return [replace(agent) for agent in self._membership.agents()]

    def failed(self, epoch: Epoch) -> frozenset[AgentName]:
        """Return the agents that could not carry out their part of a plan."""
        with self._changed:
            return frozenset(name for name, (at, _) in self._failures.items() if at == epoch)

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
                raise AgentLostError(f"agent {name!r} is gone; it cannot be given work")
        return [secrets for secrets in given.values() if secrets is not None]

    def lost_reason(self, name: AgentName) -> str:
        """Return why an agent that owes an answer is gone, or ""; cheap, from any thread."""
        with self._changed:
            if self._fault:
                return self._fault
            self._awaited_s[name] = time.monotonic()
            agent = self._membership.get(name)
            if agent is None:
                return "it never said hello"
            return "" if agent.alive else agent.reason or "it is gone"

    def wait_agents(self, n_agents: int, wait_s: float, names: Sequence[AgentName] = ()) -> None:
        """Wait until n_agents are here.

        Args:
            n_agents: how many.
            wait_s: how long at most.
            names: local agents among them; if the process of one ends, waiting is in vain.

        Raises:
            RemoteError: too few in time; says who is here.
            AgentLostError: a local agent's process ended.
        """
        deadline_s = time.monotonic() + wait_s
        with self._changed:
            while len(here := [a.name for a in self._membership.alive()]) < n_agents:
                for name in names:
                    reason = self._exit_reason(name)
                    if reason:
                        raise AgentLostError(f"agent {name!r} did not start: {reason}")
                self._raise_fault()
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise RemoteError(
                        f"{len(here)} of {n_agents} agents are here after {wait_s:g} s "
                        f"({', '.join(here) or 'none'}); {self.how_to_join}"
                    )
                self._changed.wait(min(left_s, POLL_S))

    def assign(self, told: Mapping[AgentName, Assignment]) -> None:
        """Send each agent its part of a plan."""
        for name, assignment in told.items():
            self._tell(name, assignment, Assigned(name, assignment.epoch))

    def release(self, epoch: Epoch) -> None:
        """Tell every agent that holds an epoch to free it."""
        with self._changed:
            holders = [a.name for a in self._membership.alive() if a.epoch == epoch]
        for name in holders:
            # Whoever has gone since has freed it.
            with contextlib.suppress(AgentLostError):
                self._tell(name, Release(epoch), Released(name, epoch))

    def wait_ready(self, epoch: Epoch, names: Sequence[AgentName], stall_s: float) -> None:
        """Wait until every agent of `names` is ready to serve an epoch.

        Loading may take as long as it makes progress: weights come over slow links too.

        Raises:
            RemoteError: an agent cannot carry out its part, or none made progress for stall_s.
            AgentLostError: an agent is gone.
        """
        deadline_s, seen = time.monotonic() + stall_s, -1
        with self._changed:
            while True:
                waiting = []
                for name in names:
                    agent = self._membership.get(name)
                    failed_epoch, reason = self._failures.get(name, (Epoch(0), ""))
                    if agent is None or not agent.alive:
                        why = agent.reason if agent else "it never said hello"
                        raise AgentLostError(f"agent {name!r} was lost while loading: {why}")
                    if failed_epoch == epoch:
                        raise RemoteError(f"agent {name!r} cannot load its part: {reason}")
                    if agent.state != AgentState.READY or agent.epoch != epoch:
                        waiting.append(name)
                self._raise_fault()
                if not waiting:
                    return
                loaded = self._loaded_bytes(waiting) - len(waiting)
                if loaded != seen:
                    deadline_s, seen = time.monotonic() + stall_s, loaded
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise RemoteError(
                        f"agents {', '.join(waiting)} are not ready and made no progress for "
                        f"{stall_s:g} s; look at their logs"
                    )
                self._changed.wait(min(left_s, 1.0))

    def _loaded_bytes(self, names: Sequence[AgentName]) -> int:
        agents = [self._membership.get(name) for name in names]
        return sum(a.loading.done_bytes for a in agents if a is not None and a.loading is not None)

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
                raise AgentLostError(f"agent {name!r} is gone; it cannot be given work")
            if event is not None:
                self._membership.on_event(event, time.monotonic())
            self._outer.send_multipart([agent.link, encode(message)])

    def _raise_fault(self) -> None:
        if self._fault:
            raise RemoteError(f"{self._fault}; start the coordinator again")

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
        running = True
        while running:
            ready = dict(poller.poll(int(1000 * POLL_S)))
            if self._inner in ready:
                link, data = self._inner.recv_multipart()
                running = bool(link)
                if running:
                    self._send(link, data)
            if self._socket in ready:
                self._receive()
            self._tick()

    def _receive(self) -> None:
        got = self._door.read(self._socket.recv_multipart(copy=False), self._holder)
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
            awaited = [n for n, asked_s in self._awaited_s.items() if now_s - asked_s < 0.5]
        for name, link in alive:
            reason = self._exit_reason(name)
            if reason:
                self._take(LinkLost(link, reason))
        self._take(Tick(frozenset(awaited)))
        for given in self._door.newly_invalid():
            # libzmq looks at keys when a link begins, and never again.
            reason = "its key was revoked or replaced"
            self._send(given.link, encode(Refused(reason, retry=False)))
            self._take(LinkLost(given.link, reason))
            self._door.evict(given.link)

    def _take(self, event: Event) -> None:
        with self._changed:
            actions = self._membership.on_event(event, time.monotonic())
            for action in actions:
                self._carry_out(action)
            if actions:
                self._changed.notify_all()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Welcomed(link, name):
                log.info("agent=%s joined", name)
                given = self._door.welcome(name, link)
                welcome = msgspec.structs.replace(
                    self._welcome, hot_route=given.hot_route, bulk_token=given.bulk_token
                )
                self._send(link, encode(welcome))
            case Refuse(link, reason, retry):
                log.warning("refused an agent: %s", reason)
                self._send(link, encode(Refused(reason, retry)))
            case BecameReady(name, ready):
                log.info(
                    "agent=%s ready epoch=%d weights_bytes=%d pulled_bytes=%d seconds=%.2f",
                    name, ready.epoch, ready.weights_bytes, ready.pulled_bytes, ready.seconds,
                )  # fmt: skip
            case LoadFailed(name, epoch, reason):
                self._failures[name] = (epoch, reason)
            case Lost(name, link, epoch, reason):
                log.info("agent=%s lost epoch=%d: %s", name, epoch, reason)
                self._door.on_lost(name, link)
            case Stuck(name, for_s):
                log.warning("agent=%s has finished no step for %.0f s", name, for_s)

    def _send(self, link: bytes, data: bytes) -> None:
        try:
            self._socket.send_multipart([link, data])
        except zmq.ZMQError as e:
            self._take(LinkLost(link, f"its control link is closed ({e.strerror})"))
