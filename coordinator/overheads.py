"""What a token takes besides kernels, as measured: exchanges, and the coordinator's own work. Pure.

Links tell what a frame needs on its way. How long it then lies until a busy board or coordinator
looks at it, they do not: the exchanges of real tokens are a multiple of what links promise, and the
multiple is much the same for all placements.
"""

import statistics
from collections import deque
from collections.abc import Sequence

import numpy as np

from agent.frames import Wire
from coordinator.measured import Smooth
from coordinator.planner.cost import Costs, Link, exchange_s
from coordinator.schedule import Dispatch

__all__ = ["Overheads", "StepLog"]

# Fewer steps say nothing, older ones than these are forgotten.
MIN_STEPS, KEPT_STEPS = 6, 64
# A token of fewer exchanges is a single board's, whose frames Python carries.
MIN_EXCHANGES = 8
# What is off by more is a mishap, such as a process that was stopped.
FACTORS = (0.1, 100.0)


class StepLog:
    """The steps of one row that went through one plan.

    Args:
        schedule: of the plan.
        hidden_size: of the model.
        wire: how rows are sent.

    Attributes:
        n_members: (exchanges of a step,) int64, asked by each.
        payload_bytes: of one row on the wire.
    """

    def __init__(self, schedule: Sequence[Dispatch], hidden_size: int, wire: Wire) -> None:
        self.n_members = np.array([len(dispatch.ranks) for dispatch in schedule], np.int64)
        self.payload_bytes = hidden_size * (2 if wire is Wire.F16 else 4)
        self._steps: deque[tuple[float, float]] = deque(maxlen=KEPT_STEPS)

    def note(self, n_rows: int, exchange_s: float, own_s: float) -> None:
        """Take note of a step: seconds in exchanges, and of the coordinator's own work."""
        if n_rows == 1:
            self._steps.append((exchange_s, own_s))

    def take(self) -> tuple[float, float] | None:
        """Return and forget the medians of the steps since; None if there were too few."""
        if len(self._steps) < MIN_STEPS:
            return None
        took_s, own_s = (statistics.median(x) for x in zip(*self._steps, strict=True))
        self._steps.clear()
        return took_s, own_s


class Overheads:
    """What has been learnt from the steps of all plans so far."""

    def __init__(self) -> None:
        self._factor, self._token = Smooth(), Smooth()

    def learn(self, log: StepLog, link: Link, costs: Costs) -> None:
        """Take in the steps since the last time.

        Args:
            log: of the plan in force.
            link: as the planner takes it for that plan's members.
            costs: fixed costs without what is learnt here.
        """
        found = log.take()
        if found is None:
            return
        took_s, own_s = found
        self._token = self._token.after(own_s)
        promised_s = float(exchange_s(log.n_members, log.payload_bytes, link, costs).sum())
        if len(log.n_members) >= MIN_EXCHANGES and promised_s > 0.0:
            self._factor = self._factor.after(min(max(took_s / promised_s, FACTORS[0]), FACTORS[1]))

    def known(self, costs: Costs) -> Costs:
        """Return fixed costs with what is known of exchanges and the coordinator."""
        return costs._replace(
            sample_s=self._token.value or costs.sample_s,
            exchange_factor=self._factor.value or costs.exchange_factor,
        )
