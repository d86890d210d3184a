"""What a step carries, and what it took."""

from dataclasses import dataclass
from typing import NamedTuple

from agent.ids import KvId

__all__ = ["Rows", "StepTimes"]


class Rows(NamedTuple):
    """The row table of one step: which context each row belongs to, and where in it."""

    kv_ids: list[KvId]
    positions: list[int]


@dataclass
class StepTimes:
    """Where the time of steps went, summed: kernels (slowest member), exchange, coordinator."""

    kernels_s: float = 0.0
    exchange_s: float = 0.0
    coordinator_s: float = 0.0
    longest_dispatch_s: float = 0.0
    n_steps: int = 0
    n_dispatches: int = 0

    def add(self, busy_s: float, waited_s: float) -> None:
        """Add a dispatch that took waited_s, of which its slowest member's kernels took busy_s."""
        kernels_s = min(waited_s, busy_s)
        self.kernels_s += kernels_s
        self.exchange_s += waited_s - kernels_s
        self.longest_dispatch_s = max(self.longest_dispatch_s, waited_s)
        self.n_dispatches += 1
