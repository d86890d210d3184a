"""What the coordinator makes of the measurements of one board: smoothed, proof against noise. Pure.

Every heartbeat brings values of its own second. A lasting change is taken over at its second
sighting, a single odd value hardly moves anything.
"""

from typing import NamedTuple

from agent.messages import Heartbeat
from agent.read_rate import ASSUMED_CALL_S

__all__ = ["Measured", "Smooth"]

WEIGHT = 0.3
# Values within this factor of each other are the same but for noise.
ALIKE = 1.25


class Smooth(NamedTuple):
    """A running estimate of a positive number; None = nothing known yet.

    Attributes:
        value: the estimate.
        odd: the last value, if it was far from the estimate.
    """

    value: float | None = None
    odd: float | None = None

    def after(self, new: float | None) -> "Smooth":
        """Return the estimate after one more value; None or one that cannot be changes nothing."""
        # Written so that NaN fails.
        if new is None or not 0.0 < new < float("inf"):
            return self
        if self.value is None:
            return Smooth(new)
        if _alike(new, self.value):
            return Smooth((1 - WEIGHT) * self.value + WEIGHT * new)
        if self.odd is not None and _alike(new, self.odd):
            return Smooth((new + self.odd) / 2)
        near = min(max(new, self.value / ALIKE), self.value * ALIKE)
        return Smooth((1 - WEIGHT) * self.value + WEIGHT * near, new)


def _alike(a: float, b: float) -> bool:
    return a <= ALIKE * b and b <= ALIKE * a


class Measured(NamedTuple):
    """One board and its links, by its own heartbeats.

    Attributes:
        rate: bytes per second of its kernels in real phases.
        call: seconds that each kernel call takes besides, see `cost.Costs`.
        round_trip: seconds, the least of its control link of late.
        goodput: bytes per second of its bulk link.
        n_goodput: measurements that the goodput is made of.
        goodput_s: monotonic time of the last of them; None = never.
        n_faults: major page faults since it joined.
    """

    rate: Smooth = Smooth()
    call: Smooth = Smooth()
    round_trip: Smooth = Smooth()
    goodput: Smooth = Smooth()
    n_goodput: int = 0
    goodput_s: float | None = None
    n_faults: int = 0

    def after(self, beat: Heartbeat, now_s: float) -> "Measured":
        """Return what is known after one more heartbeat, which came at monotonic now_s."""
        call_s = beat.call_s if beat.call_s is None else max(beat.call_s, 1e-9)
        rate = self.rate.after(beat.bytes_per_s)
        is_new = beat.n_goodput != self.n_goodput
        return Measured(
            rate,
            self.call.after(call_s if rate is not self.rate else None),
            # The kernel's own minimum over minutes: nothing to be smoothed.
            Smooth(beat.round_trip_s or self.round_trip.value),
            Smooth(beat.goodput_bytes_per_s) if is_new else self.goodput,
            beat.n_goodput,
            now_s if is_new else self.goodput_s,
            self.n_faults + beat.major_faults,
        )

    @property
    def call_s(self) -> float:
        """The fixed cost of a call that goes with `rate`."""
        return ASSUMED_CALL_S if self.call.value is None else self.call.value
