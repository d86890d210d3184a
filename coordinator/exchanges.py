"""How long frames are under way to each member and back, by the exchanges of real tokens. Pure.

The time from the sending of a phase to a member's answer, less what its kernels took: both ways
over the link, both ends' software, and its wait behind the frames of other members.
"""

import numpy as np
import numpy.typing as npt

from agent.frames import HEADER_BYTES, Header
from agent.samples import Samples
from coordinator.measured import Smooth
from coordinator.walk_phases import RANK_BITS

__all__ = ["Exchanges"]

PERIOD_S = 1.0
MIN_TRIPS = 16
# Both frames of a phase of one row, of whatever model.
SMALL_BYTES = 48 << 10


class Exchanges:
    """The exchange times of one plan's members.

    Args:
        n_members: how many.

    Attributes:
        trips: what the walk leaves behind, see `walk_phases`.
    """

    def __init__(self, n_members: int) -> None:
        self.trips = Samples()
        self._smooth = [Smooth()] * n_members
        self._next_s = float("-inf")

    def note(self, frame_bytes: int, reply: Header, waited_s: float) -> None:
        """Take note of an exchange with one member, outside of the walk.

        Of several members only the last one's time would be known; the walk knows them all.
        """
        n_bytes = frame_bytes + HEADER_BYTES + reply.payload_bytes
        under_way_ns = int(1e9 * waited_s) - 1000 * reply.busy_us
        self.trips.add(reply.rank + (n_bytes << RANK_BITS), under_way_ns)

    def look(self, now_s: float) -> None:
        """Take in what has happened, at most once a second; now_s is monotonic."""
        if now_s < self._next_s:
            return
        self._next_s = now_s + PERIOD_S
        for rank, found_s in medians(self.trips.take(), len(self._smooth)).items():
            self._smooth[rank] = self._smooth[rank].after(found_s)

    def seconds(self) -> list[float | None]:
        """Return each member's time in rank order, None where none is known; from any thread."""
        return [smooth.value for smooth in self._smooth]


def medians(trips: npt.NDArray[np.int64], n_members: int) -> dict[int, float]:
    """Return the median seconds under way of small frames, by rank, where there are enough.

    Args:
        trips: (n, 2) int64, rank and bytes, and nanoseconds.
        n_members: ranks from here on are of no account.
    """
    ranks, n_bytes = trips[:, 0] & ((1 << RANK_BITS) - 1), trips[:, 0] >> RANK_BITS
    # The agent's clock and ours may differ by the last microsecond.
    sound = (n_bytes <= SMALL_BYTES) & (trips[:, 1] > 0)
    found = {}
    for rank in range(n_members):
        took_ns = trips[sound & (ranks == rank), 1]
        if len(took_ns) >= MIN_TRIPS:
            found[rank] = 1e-9 * float(np.median(took_ns))
    return found
