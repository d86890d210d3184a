"""How large each member's partial sums may be: any finite number, until one was odd.

A number that overflows f16 is legal in some models. So a member whose numbers were odd in some
dispatch is from then on held to what its weights can give there (`weights.bounds`): what exceeds
that was not computed from them.
"""

from collections.abc import Callable, Sequence

import numpy as np

from agent.frames import Phase
from agent.ids import Rank
from coordinator.schedule import Dispatch

__all__ = ["Bound", "Limits"]

# Returns the largest magnitude that a member's partial sums can have in a phase of a layer.
Bound = Callable[[Rank, Phase, int], float]

_ANY = np.finfo(np.float32).max


class Limits:
    """The limits of one plan.

    Args:
        schedule: of the plan.
        n_members: members of the plan.
        bound: asked once about each member in doubt; may raise HeadwiseError.

    Attributes:
        array: (len(schedule), n_members) float32, in the order of each dispatch's ranks.
    """

    def __init__(self, schedule: Sequence[Dispatch], n_members: int, bound: Bound) -> None:
        self.array = np.full((len(schedule), n_members), _ANY, np.float32)
        self._schedule = schedule
        self._bound = bound

    def doubt(self, at: int, member: int) -> None:
        """Hold the member-th of those asked in dispatch `at` to what its weights can give."""
        if self.array[at, member] == _ANY:
            phase, layer, ranks, _ = self._schedule[at]
            self.array[at, member] = min(self._bound(ranks[member], phase, layer), float(_ANY))

    def excess(self, at: int, member: int) -> str:
        """Return what numbers that break the limit are like, and where, for an error text."""
        limit, what = self.array[at, member], "inf or NaN"
        if limit < _ANY:
            what = f"NaN or more than {limit:.3g}, the most that its weights can give,"
        phase, layer, _, _ = self._schedule[at]
        return f"{what} in {phase.name.lower()} of layer {layer}"
