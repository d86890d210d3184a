"""A cluster in memory whose texts are mirrored; see `migration_world`."""

from agent.ids import AgentName, Epoch, KvId
from agent.messages import decode_coordinator_message
from agent.migration_messages import Arrive
from agent.mirror_pool import mirrored_groups
from coordinator import migration_events as ev
from coordinator.migration import Migration
from coordinator.mirroring import Mirroring, mirror_parts, restore_parts
from tests.protocol.migration_boards import NEW, OLD, RUN, Faults, Where
from tests.protocol.migration_world import PACE, World, plan_of
from tests.protocol.stamped_rows import D, read_rows, rows_of

RESERVING_S = 0.1


class MirrorWorld(World):
    """The plan is that of epoch OLD, the mirror's pools are those of NEW.

    Args:
        where: who holds what.
        holder_of: who mirrors whom.
        faults: of the network.
    """

    def __init__(self, where: Where, holder_of: dict[str, str], faults: Faults | None = None):
        names = {AgentName(x): AgentName(m) for x, m in holder_of.items()}
        self.plan, self.mirroring = plan_of(where), Mirroring(names, ())
        parts = mirror_parts(self.plan, names)
        mirrors: Where = {
            name: [(g.layer, g.group) for g in mirrored_groups(parts.shares, name)]
            for name in sorted(parts.targets)
        }
        super().__init__(where, mirrors, faults=faults)
        self.parts = parts

    def begin(self) -> None:
        self.migration = Migration(RUN, OLD, NEW, self.parts, self.now_s, PACE, mirrors=True)
        peers = [(n.encode(), n, "") for n in self.agents]
        self.relay.begin(NEW, self.parts.shares, 2 * D * 2, peers)
        texts = [ev.Opened(k, len(t.stamps) - t.stepping, 64) for k, t in self.texts.items()]
        self._do(self.migration.begin(texts, self.now_s))
        for name in sorted(self.parts.targets):
            self.tell(ev.AgentReady(name))

    def tell(self, event: ev.Event) -> None:
        # A loss is the plan's; the mirror stays as it is.
        if not isinstance(event, ev.AgentLost):
            super().tell(event)

    def _assign(self, name: str) -> None:
        pass  # there is no plan

    def _on_order(self, name: str, data: bytes) -> None:
        """An agent reserves the pool first, and looks at the order again once it is there."""
        agent, order = self.agents[name], decode_coordinator_message(data)
        if not (isinstance(order, Arrive) and NEW not in agent.pools):
            super()._on_order(name, data)
            return
        assert order.mirror

        def reserved() -> None:
            if agent.alive and NEW not in agent.pools:
                agent.pools[NEW] = self._pool(agent, NEW)
            super(MirrorWorld, self)._on_order(name, data)

        self.at(RESERVING_S, reserved)

    def rows_after(self, kv_id: KvId, lost: str) -> int | None:
        """Return how many rows of a text are left without an agent, all checked; None: none.

        They are looked up as for a plan in which one agent, without any so far, gets all groups.
        """
        assert self.migration is not None
        left = {AgentName(a.name) for a in self.agents.values() if a.alive} - {AgentName(lost)}
        all_groups = sorted(g for groups in self.where[OLD].values() for g in groups)
        parts = restore_parts(
            self.plan, left, self.mirroring, NEW, plan_of({"nobody yet": all_groups})
        )
        if parts is None:
            return None
        text = self.texts[kv_id]
        gone = {x for x in self.mirroring.holder_of if x not in left}
        used = [self.mirroring.holder_of[x] for x in gone]
        n_rows = len(text.stamps) - text.stepping
        n = min([n_rows, *(self.migration.rows_at(kv_id, holder) for holder in used)])
        for share in parts.shares if n else ():
            agent, epoch = self.agents[share.source], Epoch(share.of_epoch or OLD)
            for g in share.groups:
                at = agent.where[epoch].index((g.layer, g.group))
                found = read_rows(agent.pools[epoch], kv_id, at, n)
                assert (found == rows_of(text.stamps[:n], g.layer, g.group)).all(), (lost, share)
        return n
