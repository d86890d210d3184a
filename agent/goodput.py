"""How many bytes a second a link carries, from the chunks that a receiver gets anyway. Pure.

Only runs count in which plenty was on its way whenever a chunk came: then the link is what the
chunks wait for, and not its round trip, as with few small objects. Several windows of a run are
measured, and the median of the last ones is told: a receiver that pauses makes one window slower,
and the next, whose chunks were there, faster.
"""

import statistics
from collections import deque

__all__ = ["Goodput"]

# A window is over after so many bytes, or so much time with at least MIN_BYTES.
WINDOW_BYTES = 1 << 20
WINDOW_S = 0.1
MIN_BYTES = 96 << 10
KEPT = 9
# A connection that has rested begins slowly.
N_COLD_BYTES = 256 << 10
# 1 Gbit carries this in a millisecond.
MIN_OPEN_BYTES = 128 << 10


class Goodput:
    """One link's goodput towards the receiver.

    Attributes:
        n_windows: windows measured so far.
    """

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=KEPT)
        self._run_bytes = self._window_bytes = 0
        self._since_s: float | None = None
        self.n_windows = 0

    @property
    def bytes_per_s(self) -> float | None:
        """What the link carries of late; None = not measured."""
        return statistics.median(self._rates) if self._rates else None

    def on_chunk(self, n_bytes: int, open_bytes: int, now_s: float) -> None:
        """Take note of a chunk.

        Args:
            n_bytes: its size.
            open_bytes: asked for and not yet come by then.
            now_s: monotonic time.
        """
        if self._since_s is None:
            self._since_s = now_s if self._run_bytes + n_bytes > N_COLD_BYTES else None
            self._run_bytes += n_bytes
        else:
            self._window_bytes += n_bytes
            self._end_window(now_s)
        if open_bytes < MIN_OPEN_BYTES:
            self.rest()

    def rest(self) -> None:
        """Forget the run: nothing is on its way."""
        self._since_s, self._run_bytes, self._window_bytes = None, 0, 0

    def _end_window(self, now_s: float) -> None:
        assert self._since_s is not None
        took_s = now_s - self._since_s
        full = self._window_bytes >= WINDOW_BYTES
        if took_s <= 0.0 or not (full or (took_s >= WINDOW_S and self._window_bytes >= MIN_BYTES)):
            return
        self._rates.append(self._window_bytes / took_s)
        self.n_windows += 1
        self._since_s, self._window_bytes = now_s, 0
