"""The boards of a cluster in memory: their pools, their part in a migration, a bad network.

`migration_world.World` adds the coordinator.
"""

import heapq
import random
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.arrival import Ask, CopyLocal, Place, Room, Tell
from agent.departure import Export
from agent.ids import AgentName, Epoch, RunId
from agent.kv import KvPool, KvShape
from agent.kv_rows import copy_rows, export_rows, import_rows
from agent.messages import (
    decode_agent_message,
    decode_bulk_message,
    decode_coordinator_message,
    encode,
)
from agent.migration_messages import (
    Group,
    KvAsk,
    KvOffer,
    KvRows,
)
from agent.mover import FreeEpoch, Mover, Serve
from coordinator import migration_events as ev
from kernels.errors import HeadwiseError, WireError
from tests.protocol.stamped_rows import D

RUN, OLD, NEW = RunId(77), Epoch(3), Epoch(4)
CONTEXT, N_CONTEXTS = 192, 6

Where = dict[str, list[tuple[int, int]]]  # (layer, group) of each agent


@dataclass
class Faults:
    """How bad the network is."""

    lost: float = 0.0
    doubled: float = 0.0
    late_s: float = 0.02


@dataclass
class Agent:
    """One board: its pools by epoch, its part in the migration, and its hot thread's queue."""

    name: str
    where: dict[int, list[tuple[int, int]]]
    pools: dict[int, KvPool] = field(default_factory=dict)
    alive: bool = True
    n_links: int = 0
    hot: deque[Any] = field(default_factory=deque)
    served: dict[int, bytes] = field(default_factory=dict)
    mover: Mover = None  # type: ignore[assignment]

    def local(self, epoch: int, groups: tuple[Group, ...]) -> list[int]:
        return [self.where[epoch].index((g.layer, g.group)) for g in groups]

    @property
    def route(self) -> bytes:
        return f"{self.name}/{self.n_links}".encode()


class Boards(ABC):
    """Boards and the network between them and the coordinator, driven by `run(seconds)`."""

    def __init__(self, old: Where, new: Where, seed: int, faults: Faults | None) -> None:
        self.now_s = 0.0
        self.rng = random.Random(seed)
        self.faults = faults or Faults()
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.n_events = 0
        self.where = {OLD: old, NEW: new}
        names = sorted({*old, *new})
        self.agents = {n: Agent(n, {OLD: old.get(n, []), NEW: new.get(n, [])}) for n in names}
        for agent in self.agents.values():
            self._new_mover(agent)
            if agent.name in old:
                agent.pools[OLD] = self._pool(agent, OLD)

    @abstractmethod
    def tell(self, event: ev.Event) -> None:
        """Let something happen at the coordinator."""

    @abstractmethod
    def at_relay(self, route: bytes, raw: bytes, data: bytes) -> None:
        """Bring a bulk message to the coordinator."""

    # Time and network.

    def at(self, in_s: float, act: Callable[[], None]) -> None:
        self.n_events += 1
        heapq.heappush(self.heap, (self.now_s + in_s, self.n_events, act))

    def run(self, for_s: float, until: Callable[[], bool] = lambda: False) -> None:
        end_s = self.now_s + for_s
        while self.heap and self.heap[0][0] <= end_s and not until():
            self.now_s, _, act = heapq.heappop(self.heap)
            act()
        if not until():
            self.now_s = end_s

    def send(self, act: Callable[[], None]) -> None:
        """Deliver something some time, perhaps: once, twice or never."""
        f = self.faults
        if self.rng.random() < f.lost:
            return
        for _ in range(1 + (self.rng.random() < f.doubled)):
            self.at(self.rng.random() * f.late_s, act)

    def _every(self, each_s: float, act: Callable[[], None]) -> None:
        def again() -> None:
            act()
            self.at(each_s, again)

        self.at(each_s, again)

    # Agents.

    def crash(self, name: str) -> None:
        agent = self.agents[name]
        if agent.alive:
            agent.alive = False
            agent.pools.clear()
            self.at(0.5, lambda: self.tell(ev.AgentLost(AgentName(name), "killed")))

    def renew_bulk(self, name: str) -> None:
        """Break an agent's bulk link; what travels on it is lost."""
        agent = self.agents[name]
        agent.n_links += 1
        if agent.alive and agent.mover.arrival is not None:
            self._act(agent, list(agent.mover.arrival.on_bulk_renewed(self.now_s)))

    def _new_mover(self, agent: Agent) -> None:
        def shape_of(epoch: int) -> KvShape | None:
            return agent.pools[epoch].shape if epoch in agent.pools else None

        agent.mover = Mover(RUN, agent.name, shape_of, agent.name.encode())

    def _pool(self, agent: Agent, epoch: int) -> KvPool:
        n = len(agent.where[epoch])
        pool = KvPool(KvShape(n, D, np.uint16, CONTEXT, N_CONTEXTS * CONTEXT, N_CONTEXTS))
        pool.pages.fill(0xFFFF)
        return pool

    def _tick_agent(self, agent: Agent) -> None:
        if agent.mover.arrival is not None:
            self._act(agent, list(agent.mover.arrival.on_tick(self.now_s)))
        if agent.mover.departure is not None and self.rng.random() < 0.2:
            self._to_relay(agent, encode(KvOffer(RUN, NEW, agent.name.encode())), b"")

    def _to_relay(self, agent: Agent, raw: bytes, data: bytes) -> None:
        route = agent.route
        self.send(lambda: self.at_relay(route, raw, data))

    def _on_order(self, name: str, data: bytes) -> None:
        agent = self.agents[name]
        if agent.alive:
            self._act(agent, agent.mover.on_order(decode_coordinator_message(data), self.now_s))

    def _on_bulk(self, route: bytes, raw: bytes, data: bytes | None) -> None:
        agent = self.agents[route.split(b"/")[0].decode()]
        if not agent.alive or agent.route != route:
            return
        message = decode_bulk_message(raw)
        if isinstance(message, KvAsk):
            self._act(agent, agent.mover.on_ask(message))
        elif isinstance(message, KvRows) and agent.mover.arrival is not None:
            self._act(agent, list(agent.mover.arrival.on_rows(message, data or b"", self.now_s)))

    def _act(self, agent: Agent, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Tell(message):
                    name, raw = AgentName(agent.name), encode(message)
                    self.send(
                        lambda n=name, r=raw: self.tell(ev.Reported(n, decode_agent_message(r)))
                    )  # type: ignore[misc]
                case Ask(message):
                    self._to_relay(agent, encode(message), b"")
                case Serve(message):
                    rows = agent.served.pop(message.number, b"") if not message.error else b""
                    self._to_relay(agent, encode(message), rows)
                case FreeEpoch(epoch):
                    agent.pools.pop(epoch, None)
                case _:
                    agent.hot.append(action)
                    self.at(0.001, lambda: self._on_hot(agent))

    def _on_hot(self, agent: Agent) -> None:
        """Do the next thing that waits for the hot thread; epochs may be gone by now."""
        if not agent.alive:
            return
        action = agent.hot.popleft()
        try:
            self._carry_out(agent, action)
        except (HeadwiseError, KeyError) as e:
            if isinstance(action, Export):
                self._act(agent, agent.mover.on_read(action.number, None))
            elif agent.mover.arrival is not None:
                self._act(agent, list(agent.mover.arrival.on_pool_error(str(e))))

    def _carry_out(self, agent: Agent, action: Any) -> None:
        match action:
            case Export(number, epoch, kv_id, groups, first, n):
                local = agent.local(epoch, groups)
                data = bytes(export_rows(agent.pools[epoch], kv_id, local, first, n))
                agent.served[number] = data
                self._act(agent, agent.mover.on_read(number, zlib.crc32(data)))
                return
            case Room(kv_id, ops, n_tokens):
                agent.pools[NEW].apply(ops)
                if n_tokens:
                    agent.pools[NEW].extend(kv_id, n_tokens)
                return
            case Place(number, kv_id, groups, first, n, data):
                local = agent.local(NEW, groups)
                try:
                    import_rows(agent.pools[NEW], kv_id, local, first, n, data)
                except WireError:
                    return  # of a text that was cut since
            case CopyLocal(number, epoch, kv_id, groups, first, n):
                source, target = agent.local(epoch, groups), agent.local(NEW, groups)
                try:
                    copy_rows(agent.pools[epoch], source, agent.pools[NEW], target, kv_id, first, n)
                except WireError:
                    return
        if agent.mover.arrival is not None:
            self._act(agent, list(agent.mover.arrival.on_placed(number, self.now_s)))
