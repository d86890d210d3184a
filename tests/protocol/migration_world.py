"""A cluster in memory that migrates: virtual time, a bad network, real KV pools.

Every row of every text holds numbers that say which write it is, so that a row of another text,
position, group or version is found out. Hot operations act at once, control and bulk messages
travel: they may be lost, doubled, late and out of order. See `World`; the boards are in
`migration_boards`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.ids import AgentName, Epoch, KvId, ModelId
from agent.kv_ops import KvOp, KvOpCode
from agent.messages import decode_bulk_message, encode
from agent.migration_messages import (
    KvAsk,
    KvOffer,
)
from agent.share import AtomRange, LayerShare
from coordinator import migration_events as ev
from coordinator.migration import Migration, State
from coordinator.migration_orders import Pace
from coordinator.migration_parts import move_parts
from coordinator.plan import Member, Plan, Stage
from coordinator.relay import Relay
from tests.protocol.migration_boards import (
    CONTEXT,
    N_CONTEXTS,
    NEW,
    OLD,
    RUN,
    Agent,
    Boards,
    Faults,
    Where,
)
from tests.protocol.stamped_rows import D, read_rows, rows_of, write_rows

N_LAYERS = 2
PACE = Pace(
    prepare_s=300.0, stall_s=20.0, hold_s=2.0, retry_s=0.3, end_s=20.0, resend_s=0.5,
    pause_tokens=8, prefill_pause_tokens=64, chase_tokens=4,
)  # fmt: skip


def plan_of(where: Where) -> Plan:
    """Return a plan of one stage in which agents hold these head groups."""

    def share(agent: str, layer: int) -> LayerShare:
        groups = [g for lay, g in where[agent] if lay == layer]
        return LayerShare(layer, tuple(AtomRange(g, 1) for g in groups))

    members = tuple(
        Member(AgentName(a), tuple(share(a, layer) for layer in range(N_LAYERS))) for a in where
    )
    return Plan(ModelId("m"), (Stage(0, N_LAYERS, members),))


@dataclass
class TextModel:
    """What the coordinator knows of a text: the stamp of each row, and whether a step runs."""

    stamps: list[int]
    stepping: int = 0


class World(Boards):
    """Everything, driven by `run(seconds)`.

    Args:
        old, new: who holds what before and after.
        seed: of the network.
        faults: of the network.
        refuses: an agent that cannot load its part.
    """

    def __init__(
        self, old: Where, new: Where, seed: int = 0, faults: Faults | None = None, refuses: str = ""
    ) -> None:
        super().__init__(old, new, seed, faults)
        self.refuses = refuses
        self.stamp = 0
        self.parts = move_parts(plan_of(old), plan_of(new))
        self.relay = Relay(RUN, max_bytes=1 << 12)
        self.texts: dict[KvId, TextModel] = {}
        self.last_kv_id = 0
        self.migration: Migration | None = None
        self.finished: ev.Finished | None = None
        self.commits: list[KvId] = []
        self.holds: dict[KvId, float] = {}
        self.longest_hold_s = 0.0
        self._every(0.05, self._tick)

    def _tick(self) -> None:
        for agent in self.agents.values():
            if agent.alive:
                self._tick_agent(agent)
        self._forward(self.relay.on_tick(self.now_s))
        self.tell(ev.Tick())

    # Texts: what the engine does.

    def open(self, n_tokens: int, parent: KvId | None = None) -> KvId | None:
        """Open a text (a fork of n_tokens rows of another); None if it is too late or too early."""
        if len(self.texts) >= N_CONTEXTS - 1:
            return None
        self.last_kv_id += 1
        kv_id = KvId(self.last_kv_id)
        if parent is not None:
            n_tokens = min(n_tokens, len(self.texts[parent].stamps))
            self._hot(self.epoch_of(parent), [KvOp(KvOpCode.FORK, kv_id, parent, n_tokens)])
            self.texts[kv_id] = TextModel(self.texts[parent].stamps[:n_tokens])
            self.tell(ev.Opened(kv_id, n_tokens, 0, parent, n_tokens))
            return kv_id
        self._hot(self.epoch_of(kv_id), [KvOp(KvOpCode.OPEN, kv_id, 64)])
        self.texts[kv_id] = TextModel([])
        self.tell(ev.Opened(kv_id, 0, 64))
        if n_tokens:
            self.begin_step(kv_id, n_tokens)
            self.end_step(kv_id)
        return kv_id

    def begin_step(self, kv_id: KvId, n_rows: int) -> bool:
        """Send rows out; the first layer is written at once, the others when the step ends."""
        text = self.texts[kv_id]
        n_rows = min(n_rows, CONTEXT - len(text.stamps))
        held = self.migration is not None and not self.migration.may_step(kv_id)
        if text.stepping or held or n_rows <= 0:
            return False
        text.stepping = n_rows
        self.tell(ev.Stepping(kv_id))
        for _ in range(n_rows):
            self.stamp += 1
            text.stamps.append(self.stamp)
        self._write(kv_id, n_rows, 0)
        return True

    def end_step(self, kv_id: KvId, prefill: bool = False) -> None:
        text = self.texts[kv_id]
        if not text.stepping:
            return
        for layer in range(1, N_LAYERS):
            self._write(kv_id, text.stepping, layer)
        text.stepping = 0
        self.tell(ev.AtBoundary(kv_id, len(text.stamps), prefill))

    def truncate(self, kv_id: KvId, n_tokens: int) -> None:
        text = self.texts[kv_id]
        if text.stepping:
            return
        del text.stamps[n_tokens:]
        self._hot(self.epoch_of(kv_id), [KvOp(KvOpCode.TRUNCATE, kv_id, n_tokens)])
        self.tell(ev.Truncated(kv_id, n_tokens))

    def close(self, kv_id: KvId) -> None:
        if self.texts[kv_id].stepping:
            return
        del self.texts[kv_id]
        self._hot(self.epoch_of(kv_id), [KvOp(KvOpCode.RELEASE, kv_id)])
        self.holds.pop(kv_id, None)
        self.tell(ev.Closed(kv_id))

    def epoch_of(self, kv_id: KvId) -> int:
        return OLD if self.migration is None else self.migration.epoch_of(kv_id)

    def _write(self, kv_id: KvId, n_rows: int, layer: int) -> None:
        stamps, epoch = self.texts[kv_id].stamps, self.epoch_of(kv_id)
        for agent in self._holders(epoch):
            pool = agent.pools[epoch]
            pool.extend(kv_id, len(stamps))
            for i, (lay, group) in enumerate(agent.where[epoch]):
                if lay == layer:
                    write_rows(pool, kv_id, i, len(stamps) - n_rows, rows_of(stamps, lay, group))

    def _holders(self, epoch: int) -> list[Agent]:
        agents = [self.agents[n] for n in self.where[Epoch(epoch)]]
        return [a for a in agents if a.alive and epoch in a.pools]

    def _hot(self, epoch: int, ops: list[KvOp], names: tuple[str, ...] | None = None) -> None:
        for agent in self._holders(epoch):
            if names is None or agent.name in names:
                agent.pools[epoch].apply(ops)

    # The coordinator.

    def begin(self) -> None:
        self.migration = Migration(RUN, OLD, NEW, self.parts, self.now_s, PACE)
        peers = [(n.encode(), n, "") for n in self.agents]
        self.relay.begin(NEW, self.parts.shares, 2 * D * 2, peers)
        texts = [ev.Opened(k, len(t.stamps) - t.stepping, 64) for k, t in self.texts.items()]
        actions = self.migration.begin(texts, self.now_s)
        for name in self.parts.kept:
            self.agents[name].pools[NEW] = self.agents[name].pools[OLD]
        for kv_id, text in self.texts.items():
            if text.stepping:
                actions += self.migration.on_event(ev.Stepping(kv_id), self.now_s)
        self._do(actions)

    def tell(self, event: ev.Event) -> None:
        if self.migration is not None:
            self._do(self.migration.on_event(event, self.now_s))

    def _do(self, actions: list[ev.Action]) -> None:
        for action in actions:
            match action:
                case ev.Assign(name):
                    self.at(0.1, lambda n=name: self._assign(n))  # type: ignore[misc]
                case ev.Send(name, message):
                    data = encode(message)
                    self.send(lambda n=name, d=data: self._on_order(n, d))  # type: ignore[misc]
                case ev.Hold(kv_id):
                    assert not self.texts[kv_id].stepping
                    self.holds[kv_id] = self.now_s
                case ev.Resume(kv_id):
                    self._held(kv_id)
                case ev.Commit(kv_id, leaves):
                    self._held(kv_id)
                    assert kv_id not in self.commits, "a text was committed twice"
                    self.commits.append(kv_id)
                    self.check_text(kv_id)
                    self._hot(OLD, [KvOp(KvOpCode.RELEASE, kv_id)], leaves)
                case ev.Finished():
                    assert self.finished is None
                    self.finished = action
                    self.relay.end()

    def _held(self, kv_id: KvId) -> None:
        self.longest_hold_s = max(self.longest_hold_s, self.now_s - self.holds.pop(kv_id))

    def _assign(self, name: str) -> None:
        agent = self.agents[name]
        if agent.alive and name == self.refuses:
            self.tell(ev.AgentFailed(AgentName(name), "no memory"))
        elif agent.alive:
            agent.pools[NEW] = self._pool(agent, NEW)
            self.tell(ev.AgentReady(AgentName(name)))

    def _forward(self, forwards: list[Any]) -> None:
        for route, message, data in forwards:
            raw = encode(message)
            self.send(lambda r=route, m=raw, d=data: self._on_bulk(r, m, d))  # type: ignore[misc]

    def at_relay(self, route: bytes, raw: bytes, data: bytes) -> None:
        message = decode_bulk_message(raw)
        if isinstance(message, KvOffer):
            self._forward(self.relay.on_offer(route, message, "", self.now_s))
        elif isinstance(message, KvAsk):
            self._forward(self.relay.on_ask(route, message, "", self.now_s))
        else:
            self._forward(self.relay.on_rows(route, message, data, 0, self.now_s))
        assert self.relay.open_bytes <= 1 << 12

    # What must hold.

    def check_text(self, kv_id: KvId) -> None:
        """Every living holder of a text's plan has every row, and the right one."""
        text, epoch = self.texts[kv_id], self.epoch_of(kv_id)
        n = len(text.stamps) - text.stepping
        for name in self.where[Epoch(epoch)]:
            agent = self.agents[name]
            if not agent.alive:
                continue
            assert epoch in agent.pools, f"{name} freed epoch {epoch}, which text {kv_id} is in"
            for i, (layer, group) in enumerate(agent.where[epoch]):
                found = read_rows(agent.pools[epoch], kv_id, i, n)
                wrong = (found != rows_of(text.stamps[:n], layer, group)).any(axis=1)
                assert not wrong.any(), (
                    f"{name}: text {kv_id} group {layer}.{group} rows {np.flatnonzero(wrong)}"
                )

    def check(self) -> None:
        for kv_id in self.texts:
            self.check_text(kv_id)
        for agent in self.agents.values():
            for pool in agent.pools.values():
                pool.check()

    def check_end(self) -> None:
        """Nothing is left of what lost, and in what won there are the open texts, no others."""
        assert self.finished is not None
        if self.finished.outcome is ev.Outcome.BROKEN:
            return
        epoch = NEW if self.finished.outcome is ev.Outcome.MOVED else OLD
        for agent in self.agents.values():
            if not agent.alive or agent.name in self.finished.unfreed:
                continue
            assert set(agent.pools) == ({epoch} if agent.name in self.where[epoch] else set())
            for pool in agent.pools.values():
                assert set(pool.kv_ids) == set(self.texts), agent.name
            assert agent.mover.arrival is None
            assert agent.mover.departure is None

    @property
    def done(self) -> bool:
        return self.migration is not None and self.migration.state is State.DONE
