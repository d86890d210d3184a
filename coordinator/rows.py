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
