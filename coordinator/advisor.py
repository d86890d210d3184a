"""When to ask for a better plan, and what the planner is told then. Pure.

Boards slow down and recover, and not every change is worth a migration: heartbeats feed a watch
over rates, whose estimates and horizon go to the planner together with what each board has at hand.
"""

from collections.abc import Collection, Sequence

import numpy as np

from agent.ids import AgentName
from coordinator.known_agent import Agent
from coordinator.plan import Plan, plan_weights_bytes
from coordinator.planner.decision import Conditions
from coordinator.planner.holdings import Resident, holdings_of
from coordinator.planner.place import Offer
from coordinator.planner.watch import RateWatch
from coordinator.promise import Judgement
from coordinator.relief import Relief
from kernels.layout import Geometry

__all__ = ["Advisor"]

# Who keeps more of its weights than that had no work taken off it.
LIGHTER = 0.9
# Looked at now and then without a change, too: estimates get better as they settle.
LOOK_S = 5.0
# What calls show while a plan is being changed, and so long after it, is the change's doing.
SETTLE_S = 0.5
# When everybody has told what calls show since then.
TOLD_S = 0.5


class Advisor:
    """Watches the boards of one coordinator.

    Args:
        geometry: the model's shapes.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._watch = RateWatch()
        self._relief = Relief()
        self._now_s = 0.0
        # What the planner was told last.
        self._told: dict[AgentName, float] = {}
        self._beats: dict[AgentName, object] = {}
        self._everything: set[AgentName] = set()
        # Whom the planner has been told of: who is new may be used at a small gain.
        self._known: frozenset[AgentName] = frozenset()
        self._due_s = 0.0
        self._settled_s = float("-inf")
        self._changed = False

    def look(self, agents: Sequence[Agent], now_s: float, is_moving: bool = False) -> None:
        """Take the heartbeats since the last look.

        Args:
            agents: those that are here.
            now_s: monotonic time.
            is_moving: whether another plan is about to come into force.
        """
        if is_moving:
            self._settled_s = now_s + SETTLE_S
        here = {agent.name for agent in agents}
        for name in self._beats.keys() - here:
            del self._beats[name]
            self._watch.forget(name)
            self._relief.forget(name)
        self._changed |= self._relief.ends(now_s, self._now_s)
        self._now_s = now_s
        for agent in agents:
            beat = agent.heartbeat
            if beat is None or self._beats.get(agent.name) is beat:
                continue
            self._beats[agent.name] = beat
            if beat.bytes_per_s is not None and now_s >= self._settled_s:
                self._changed |= self._watch.measure(agent.name, beat.bytes_per_s, now_s)
                self._relief.measured(agent.name, beat.bytes_per_s, now_s)
            if agent.ready is not None and agent.ready.weights_bytes:
                # Who had to pull nothing has the model, or at least had this part before.
                if agent.ready.pulled_bytes == 0:
                    self._everything.add(agent.name)
                else:
                    self._everything.discard(agent.name)

    def is_due(self, now_s: float) -> bool:
        """Tell whether a better plan may be had; the next time only when something has changed."""
        if now_s < self._settled_s + TOLD_S or (not self._changed and now_s < self._due_s):
            return False
        self._changed, self._due_s = False, now_s + LOOK_S
        return True

    def moved(self, before: Plan, after: Plan, now_s: float) -> None:
        """Note that another plan is in force, which may be the first part of a change.

        Args:
            before: the one that was moved from.
            after: the one that is in force.
            now_s: monotonic time.
        """
        self._changed, self._settled_s = True, now_s + SETTLE_S
        had, has = (plan_weights_bytes(plan, self._geometry) for plan in (before, after))
        lighter = [name for name in had if has.get(name, 0) < LIGHTER * had[name]]
        self._relief.moved(lighter, self._told, now_s)

    def judged(self, judgement: Judgement, now_s: float) -> None:
        """Note what the plan in force has kept of its promise."""
        if judgement.is_broken:
            self._changed |= self._relief.disappointed(now_s)

    def estimated(self, offers: Sequence[Offer]) -> list[Offer]:
        """Return offers with the watch's estimates of rates, where there are any."""
        for o in offers:
            rate = self._watch.rate(o.name) or o.bytes_per_s
            self._told[o.name] = self._relief.rate(o.name, rate, self._now_s)
        return [o._replace(bytes_per_s=self._told[o.name]) for o in offers]

    def reckoned(self) -> str:
        """Return the rates that the planner was told last, for a log."""
        rates = ",".join(f"{name}:{rate / 1e9:.2f}" for name, rate in sorted(self._told.items()))
        return f"gb_per_s={rates or 'unknown'}"

    def conditions(
        self,
        plan: Plan,
        offers: Sequence[Offer],
        n_tokens: int,
        barred: Collection[AgentName],
        cordoned: Collection[AgentName] = (),
    ) -> Conditions:
        """Return what the planner is to know besides plan and offers.

        Args:
            plan: the plan in force.
            offers: agents in the order in which the planner is given them.
            n_tokens: tokens cached at present, over all contexts.
            barred: agents that must not hold anything.
            cordoned: agents that are given nothing, but may keep what they have.
        """
        members = {member.agent for member in plan.members}
        here = frozenset(o.name for o in offers)
        joined = here - self._known - members - frozenset(barred)
        return Conditions(
            self._watch.horizon.mean_s,
            n_tokens,
            resident=self._resident(plan, [o.name for o in offers]),
            barred=frozenset(barred),
            joined=joined,
            cordoned=frozenset(cordoned),
            both_at_once=True,
        )

    def answered(self, offers: Sequence[Offer]) -> None:
        """Note that the planner has answered about these agents: none of them is new any more."""
        self._known = frozenset(o.name for o in offers)

    def _resident(self, plan: Plan, names: Sequence[AgentName]) -> Resident:
        """Return whose weights are at hand: everything, or what an agent holds now."""
        n = len(names)
        just = Resident.just(holdings_of(plan, self._geometry, names), n)
        every = Resident.everything(n, self._geometry)
        whole = np.array([name in self._everything for name in names], np.bool_)
        return Resident(
            just.groups | (every.groups & whole[:, None, None]),
            just.columns | (every.columns & whole[:, None, None]),
            just.vocab | (every.vocab & whole[:, None]),
        )
