"""What a simulated cluster did: tokens, moves and memory over time. Pure."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from coordinator.plan import Plan
from coordinator.planner.cost import Offer, atom_sizes, counts_of
from coordinator.planner.place import assess
from tools.simulation.load_setting import BoardState, LoadSetting

__all__ = ["Change", "Meter", "Outcome"]

# Curves over time have so many points.
N_BINS = 60
# Decode of a board whose atoms exceed its memory: weights come from flash again and again.
PAGING_SHARE = 0.1


class Change(NamedTuple):
    """A plan that came into force: when, why, bytes copied for it, bytes held by each board."""

    at_s: float
    reason: str
    moved_bytes: int
    held_bytes: tuple[int, ...]


class Outcome(NamedTuple):
    """One run: tokens a second, on average and over N_BINS equal times; changes of plan.

    `changes` begins with the first plan, at 0 s. `gaps_s`: seconds in which no token could flow.
    """

    tokens_per_s: float
    curve: tuple[float, ...]
    changes: tuple[Change, ...]
    gaps_s: float = 0.0
    n_given_up: int = 0

    @property
    def n_changes(self) -> int:
        """Plans that came into force after the first."""
        return len(self.changes) - 1

    @property
    def moved_bytes(self) -> int:
        """Bytes of weights and KV copied."""
        return sum(c.moved_bytes for c in self.changes)


@dataclass
class Meter:
    """Counts tokens: predicted times of plans under what the boards truly are."""

    setting: LoadSetting
    n_given_up: int = 0
    _bins: list[float] = field(default_factory=lambda: [0.0] * N_BINS)
    _gaps_s: float = 0.0
    _changes: list[Change] = field(default_factory=list)
    _known: dict[tuple[int, BoardState], tuple[Plan, float]] = field(default_factory=dict)

    def flow(
        self, plan: Plan, from_s: float, to_s: float, state: BoardState, share: float = 1.0
    ) -> None:
        """Let tokens flow with a plan for a while, at a share of its speed."""
        per_s = share * self.tokens_per_s(plan, state)
        if per_s == 0:
            self._gaps_s += to_s - from_s
            return
        width_s = self.setting.duration_s / N_BINS
        while from_s < to_s:
            at = min(int(from_s / width_s + 1e-9), N_BINS - 1)
            end_s = to_s if at == N_BINS - 1 else min(to_s, (at + 1) * width_s)
            self._bins[at] += (end_s - from_s) * per_s
            from_s = end_s

    def wait(self, from_s: float, to_s: float) -> None:
        """Note that no token flows."""
        self._gaps_s += max(0.0, to_s - from_s)

    def tokens_per_s(self, plan: Plan, state: BoardState) -> float:
        """Return the speed of a plan; 0 where a member is away, little where memory lacks.

        The plan is kept, so that its id stays its own.
        """
        key = id(plan), state
        if key not in self._known:
            self._known[key] = plan, self._speed(plan, state)
        return self._known[key][1]

    def _speed(self, plan: Plan, state: BoardState) -> float:
        s = self.setting
        held = dict(zip(s.names, self._held_bytes(plan), strict=True))
        offers = {o.name: o for o in s.offers(state)}
        if any(m.agent not in offers for m in plan.members):
            return 0.0
        paging = [
            Offer(o.name, o.memory_bytes, o.bytes_per_s * PAGING_SHARE)
            if held[o.name] > o.memory_bytes
            else o
            for o in offers.values()
        ]
        return 1.0 / assess(plan, s.geometry, paging, s.request, s.link).token_s

    def _held_bytes(self, plan: Plan) -> tuple[int, ...]:
        """Return the bytes of weights and KV pool of each board."""
        s = self.setting
        sizes, counts = atom_sizes(s.geometry, s.request), counts_of(plan, s.geometry)
        each = np.asarray(counts.weights_bytes(sizes) + counts.pool_bytes(sizes)).tolist()
        held = {m.agent: int(n) for m, n in zip(plan.members, each, strict=True)}
        return tuple(held.get(name, 0) for name in s.names)

    def note(self, at_s: float, reason: str, plan: Plan, moved_bytes: int = 0) -> None:
        """Note that a plan comes into force."""
        self._changes.append(Change(at_s, reason, moved_bytes, self._held_bytes(plan)))

    def outcome(self) -> Outcome:
        """Return what was counted."""
        duration_s = self.setting.duration_s
        width_s = duration_s / N_BINS
        return Outcome(
            sum(self._bins) / duration_s,
            tuple(n / width_s for n in self._bins),
            tuple(self._changes),
            self._gaps_s,
            self.n_given_up,
        )
