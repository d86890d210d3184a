"""One placement that a re-plan considers, and what going there is worth. Pure.

A candidate x' with token time T(x') is worth, in seconds of tokens,

    J = horizon * gain - horizon * gain * (1 - exp(-copy / horizon)) - copy * (slow + back * gain)
        - stall,    gain = 1 - T(x') / T(x)

Nothing is gained while it is copied, or if the rates change before that; copying slows tokens a
little; the way back, once the rates change, is as long as the way there, and is paid for now.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from coordinator.planner.cost import Counts, TokenTime
from coordinator.planner.decision import Option
from coordinator.planner.holdings import Holdings
from coordinator.planner.moves import MovePrice

__all__ = ["LEAST_GAIN", "Candidate", "worth_s"]

# Less is within what sensors err.
LEAST_GAIN = 0.04


@dataclass
class Candidate:
    """A placement by counts, priced if it is faster, and atom by atom if it looks best."""

    name: str
    counts: Counts
    time: TokenTime
    price: MovePrice | None = None
    worth_s: float = -math.inf
    rejected: str = ""
    after: Holdings | None = field(default=None, repr=False)

    @property
    def waits_s(self) -> float:
        """Seconds until it is in force: copying and the stall; infinite if not priced."""
        return math.inf if self.price is None else self.price.copy_s + self.price.stall_s

    def option(self, held: Counts) -> Option:
        """Return the plain data of it."""
        pairs = zip(self.counts[:3], held[:3], strict=True)
        n_atoms = sum(int(np.maximum(new - old, 0).sum()) for new, old in pairs)
        return Option(
            self.name, self.time.total_s, n_atoms, self.price, self.worth_s, self.rejected
        )


def worth_s(
    horizon_s: float, slowness: float, price: MovePrice, slow_share: float, back_share: float
) -> float:
    """Return J.

    Args:
        horizon_s: how long the present rates are counted on, above 0.
        slowness: token time there over the present one.
        price: of going there.
        slow_share: by how much tokens are slower while something is copied.
        back_share: part of the way back that is charged.
    """
    gain = 1.0 - slowness
    missed_s = horizon_s * max(gain, 0.0) * -math.expm1(-price.copy_s / horizon_s)
    disturbed_s = price.copy_s * (slow_share + back_share * max(gain, 0.0))
    return horizon_s * gain - missed_s - disturbed_s - price.stall_s
