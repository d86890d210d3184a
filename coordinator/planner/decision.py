"""What a re-plan is asked and what it answers: plain data.

`coordinator.planner.replan` decides.
"""

from dataclasses import dataclass

from agent.ids import AgentName
from coordinator.plan import Plan
from coordinator.planner.cost import TokenTime
from coordinator.planner.holdings import Resident
from coordinator.planner.moves import DEFAULT_MOVE_COSTS, Move, MoveCosts, MovePrice, Network

__all__ = ["Conditions", "Option", "Replan"]


@dataclass(frozen=True)
class Conditions:
    """What a re-plan depends on besides plan, offers and request.

    Attributes:
        horizon_s: mean time for which a board's rate stays as it is (`RateWatch.horizon.mean_s`).
        n_tokens: tokens cached at present, over all contexts.
        resident: whose weights are at hand, agents in the order of offers; None = only what
            each one holds.
        joined: agents that have come since the last re-plan.
        barred: agents that must not hold anything, though they are here (drained).
        cordoned: agents that must not get anything; they may keep what they hold.
        both_at_once: while it is moved to a plan, the KV pools of that and of the present one are
            in memory, except for agents for which nothing changes.
        network: links for copying; None = all like the plan's link.
        costs: how moves disturb.
        horizon_share: part of `horizon_s` that gains are counted for: a plan rests on the rates
            of several boards, and the first of them that changes ends it.
        back_share: part of the way back that is charged to the way there.
    """

    horizon_s: float
    n_tokens: int = 0
    resident: Resident | None = None
    joined: frozenset[AgentName] = frozenset()
    barred: frozenset[AgentName] = frozenset()
    cordoned: frozenset[AgentName] = frozenset()
    both_at_once: bool = False
    network: Network | None = None
    costs: MoveCosts = DEFAULT_MOVE_COSTS
    horizon_share: float = 0.5
    back_share: float = 1.0


@dataclass(frozen=True)
class Option:
    """A placement that was considered; `rejected` is empty for the one that is taken.

    `price` is None, and `worth_s` -inf, where too little is gained to work it out.
    """

    name: str
    token_s: float
    n_atoms: int
    price: MovePrice | None
    worth_s: float
    rejected: str = ""


@dataclass(frozen=True)
class Replan:
    """What to do: `moves` is empty if the present plan stays.

    `reason` is "stay", "faster", "join", "drain", "lost" or "memory"; `before` is None where the
    present plan cannot run. `again`: this is the first part of a change, which is to be had at once
    or after the least wait; re-plan again as soon as it is in force.
    """

    reason: str
    plan: Plan
    moves: tuple[Move, ...]
    before: TokenTime | None
    after: TokenTime
    price: MovePrice
    options: tuple[Option, ...] = ()
    again: bool = False

    @property
    def moved_bytes(self) -> int:
        """Bytes of weights and KV to be copied."""
        return sum(m.weights_bytes + m.kv_bytes for m in self.moves)

    def line(self) -> str:
        """Return what is done and why, as key=value for one line of a log."""
        before = "none" if self.before is None else f"{1e3 * self.before.total_s:.1f}"
        return (
            f"reason={self.reason} moves={len(self.moves)} bytes={self.moved_bytes} "
            f"token_ms={before}->{1e3 * self.after.total_s:.1f} copy_s={self.price.copy_s:.2f} "
            f"stall_ms={1e3 * self.price.stall_s:.0f}"
        )
