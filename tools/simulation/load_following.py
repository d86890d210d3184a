"""The coordinator of a simulated cluster: watches rates, re-plans, carries out moves. Pure.

Tokens flow with the plan in force; copies run in the background with the old plan; then tokens
stop for the predicted stall. Where a board is lost they stop until the next plan is in force.
"""

from agent.ids import AgentName
from coordinator.plan import Plan
from coordinator.planner.holdings import Resident
from coordinator.planner.moves import DEFAULT_MOVE_COSTS
from coordinator.planner.place import assess
from coordinator.planner.replan import Conditions, Replan, replan
from coordinator.planner.watch import RateWatch
from kernels.errors import ResourceError
from tools.simulation.load_meter import Meter, Outcome
from tools.simulation.load_sensors import Sensors
from tools.simulation.load_setting import BoardState, LoadSetting, samples

__all__ = ["PREFILL_ROWS", "Following"]

# Less is won by going on with a copy than its end may cost.
WORTH_GOING_ON = 0.98
# A board that is gone is missed after so long: three heartbeats.
NOTICED_S = 1.5
# Prefill reads weights once for so many rows.
PREFILL_ROWS = 8


class Following:
    """One run of the production planner; `resident`: weights are on every board."""

    def __init__(self, setting: LoadSetting, seed: int, plan: Plan, resident: bool) -> None:
        self._setting, self._seed, self._plan = setting, seed, plan
        self._weights_everywhere = resident
        self._watch, self._meter, self._sensors = RateWatch(), Meter(setting), Sensors(setting)
        self._meter.note(0.0, "first", plan)
        self._moving: Replan | None = None
        self._copied_s = self._running_s = 0.0
        self._due = False
        self._unsettled: set[AgentName] = set()
        self._seen = setting.calm
        self._missed_since_s: dict[AgentName, float] = {}
        self._joined: frozenset[AgentName] = frozenset()

    def run(self) -> Outcome:
        """Return what comes of the whole trace."""
        for now_s, measured, passed in samples(self._setting, self._seed):
            for from_s, to_s, state in passed:
                self._flow(from_s, to_s, state)
            self._look(measured, now_s)
        return self._meter.outcome()

    def _flow(self, from_s: float, to_s: float, state: BoardState) -> None:
        """Let tokens flow, background copies go on, and stalls pass."""
        while from_s < to_s:
            if self._moving is None:
                self._meter.flow(self._plan, from_s, to_s, state)
                return
            if from_s < self._copied_s:
                end_s = min(to_s, self._copied_s)
                share = 1.0 - DEFAULT_MOVE_COSTS.slow_share
                self._meter.flow(self._plan, from_s, end_s, state, share)
                from_s = end_s
            elif from_s < self._running_s:
                end_s = min(to_s, self._running_s)
                self._meter.wait(from_s, end_s)
                from_s = end_s
            else:
                done, self._moving = self._moving, None
                self._plan = done.plan
                self._meter.note(from_s, done.reason, done.plan, done.moved_bytes)
                if done.again or self._due:
                    self._replan(from_s)

    def _look(self, measured: BoardState, now_s: float) -> None:
        """Take in measurements; re-plan on changes, and again when estimates have settled."""
        self._look_who_is_here(measured, now_s)
        for name, rate in self._sensors.hear(measured, now_s):
            if self._watch.measure(name, rate, now_s):
                self._due = True
                self._unsettled.add(name)
            elif name in self._unsettled and self._watch.settled(name):
                self._due = True
                self._unsettled.discard(name)
        if self._due and self._still_worth(now_s):
            return
        if self._due and self._moving is None:
            self._replan(now_s)

    def _look_who_is_here(self, measured: BoardState, now_s: float) -> None:
        """Notice, a while later, who has gone; and at once who has come and what memory is left."""
        rates, before = list(measured.rates), self._seen
        for i, name in enumerate(self._setting.names):
            if rates[i] > 0:
                if self._missed_since_s.pop(name, now_s) <= now_s - NOTICED_S:
                    self._joined |= {name}
                    self._due = True
            elif now_s - self._missed_since_s.setdefault(name, now_s) < NOTICED_S:
                rates[i] = before.rates[i]
            elif before.rates[i] > 0:
                self._watch.forget(name)
                self._joined -= {name}
                self._due = True
        self._due |= measured.memory_bytes != before.memory_bytes
        self._seen = BoardState(tuple(rates), measured.memory_bytes)

    def _state(self) -> BoardState:
        """Return what the coordinator believes: estimates, not single measurements."""
        s = self._setting
        rates = [
            # Of a board that has just come, what it says in its HELLO.
            (self._watch.rate(name) or at_rest) if rate > 0 else 0.0
            for name, at_rest, rate in zip(s.names, s.bytes_per_s, self._seen.rates, strict=True)
        ]
        return BoardState(tuple(rates), self._seen.memory_bytes)

    def _still_worth(self, now_s: float) -> bool:
        """Return whether a copy under way goes on; give it up if nothing is won by it now."""
        if self._moving is None:
            return False
        s, here = self._setting, self._setting.offers(self._state())
        names = {o.name for o in here}
        sources = {m.source for m in self._moving.moves} - {None}
        if sources <= names and {m.agent for m in self._moving.plan.members} <= names:
            if now_s >= self._copied_s or not {m.agent for m in self._plan.members} <= names:
                return True
            planned = [
                assess(p, s.geometry, here, s.request, s.link)
                for p in (self._plan, self._moving.plan)
            ]
            short = any(m.total_bytes > m.budget_bytes for m in planned[1].members)
            if not short and (
                self._moving.reason != "faster"
                or planned[1].token_s < WORTH_GOING_ON * planned[0].token_s
            ):
                return True
        self._moving = None
        self._meter.n_given_up += 1
        return False

    def _replan(self, now_s: float) -> None:
        s, self._due = self._setting, False
        here = s.offers(self._state())
        now = Conditions(
            horizon_s=self._watch.horizon.mean_s,
            n_tokens=s.cached_tokens,
            resident=Resident.everything(len(here), s.geometry)
            if self._weights_everywhere
            else None,
            joined=self._joined,
            horizon_share=s.horizon_share,
            back_share=s.back_share,
        )
        try:
            found = replan(self._plan, s.geometry, here, s.request, s.link, now)
        except ResourceError:
            # The cluster waits for boards or memory; whatever comes is a reason to look again.
            return
        self._joined = frozenset()
        if found.moves:
            self._moving = found
            self._copied_s = now_s + found.price.copy_s
            self._running_s = self._copied_s + found.price.stall_s + self._prefill_s(found)

    def _prefill_s(self, found: Replan) -> float:
        """Return how long lost KV takes to compute again; all groups of a token depend on it."""
        lost = any(m.source is None and m.kind == "group" for m in found.moves)
        if not lost or self._setting.mirrored:
            return 0.0
        return self._setting.cached_tokens * found.after.total_s / PREFILL_ROWS
