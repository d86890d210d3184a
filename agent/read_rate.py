"""How fast a board's kernels read, from the calls of real tokens: time = call + bytes / rate.

The fixed cost of a call and the rate can be told apart only where calls differ in size, as
attention and MLP do. Medians make it proof against calls that the system interrupted, in a burst
or now and then. A board that is stopped all the time, as by a quota of its processor, is as fast as
all its calls together. Pure.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["ASSUMED_CALL_S", "MIN_CALLS", "ReadRate", "read_rate"]

# Fewer say nothing: a slow board gathers them over several heartbeats.
MIN_CALLS = 16
# Sizes that are closer than this factor do not tell the fixed cost from the rate.
MIN_SPREAD = 1.5
# The planner's fixed cost of a call (`coordinator.planner.cost.Costs`), where it is not known.
ASSUMED_CALL_S = 20e-6

# Calls that steadily take so many times what medians say, or so many times less.
STRETCHED = 1.25
N_PARTS = 4

Floats = npt.NDArray[np.float64]


class ReadRate(NamedTuple):
    """Bytes per second of kernels, and the fixed cost of each call; None = not told apart."""

    bytes_per_s: float
    call_s: float | None


def read_rate(samples: npt.NDArray[np.int64]) -> ReadRate | None:
    """Return the speed that calls show, None if they are too few.

    Args:
        samples: (n, 2) int64, bytes read and nanoseconds taken of each call.
    """
    sound = samples[(samples > 0).all(axis=1)]
    if len(sound) < MIN_CALLS:
        return None
    found = _by_medians(sound)
    stretch = _stretch(sound, found)
    if 1 / STRETCHED <= stretch <= STRETCHED:
        return found
    call_s = None if found.call_s is None else found.call_s * stretch
    return ReadRate(found.bytes_per_s / stretch, call_s)


def _stretch(sound: npt.NDArray[np.int64], found: ReadRate) -> float:
    """Return how much longer calls took than they should, again and again over all the time."""
    call_s = ASSUMED_CALL_S if found.call_s is None else found.call_s
    wanted_ns = 1e9 * (call_s + sound[:, 0] / found.bytes_per_s)
    starts = [len(sound) * i // N_PARTS for i in range(N_PARTS)]
    parts = np.add.reduceat(sound[:, 1], starts) / np.add.reduceat(wanted_ns, starts)
    # What happened in one part only, or two, was a burst.
    return float(np.sort(parts)[1])


def _by_medians(sound: npt.NDArray[np.int64]) -> ReadRate:
    """Return the speed of calls of which fewer than half were interrupted."""
    n_bytes = sound[:, 0]
    byte_ns = sound[:, 1] / n_bytes
    least, most = int(n_bytes.min()), int(n_bytes.max())
    if most >= MIN_SPREAD * least:
        small = n_bytes < math.sqrt(least * most)
        large = ~small
        n_small = np.count_nonzero(small)
        if MIN_CALLS // 4 <= n_small <= len(sound) - MIN_CALLS // 4:
            return _line(_typical(n_bytes[small], byte_ns[small]),
                         _typical(n_bytes[large], byte_ns[large]))  # fmt: skip
    size, took_s = _typical(n_bytes, byte_ns)
    # Half at least is reading, whatever the cost of a call is here.
    return ReadRate(size / max(took_s - ASSUMED_CALL_S, took_s / 2), None)


def _typical(n_bytes: npt.NDArray[np.int64], byte_ns: Floats) -> tuple[float, float]:
    """Return the mean size of calls, and how long one of that size takes by the median, in s."""
    size = float(n_bytes.sum()) / len(n_bytes)
    # Sorted here: `np.median` takes as long as all the rest of a heartbeat.
    byte_ns = np.sort(byte_ns)
    n = len(byte_ns)
    return size, 1e-9 * size * float(byte_ns[(n - 1) // 2] + byte_ns[n // 2]) / 2


def _line(small: tuple[float, float], large: tuple[float, float]) -> ReadRate:
    """Return the line through a small and a large call, with a fixed cost that is possible."""
    (small_bytes, small_s), (large_bytes, large_s) = small, large
    slope = (large_s - small_s) / (large_bytes - small_bytes)
    call_s = small_s - slope * small_bytes
    if slope <= 0.0 or call_s < 0.0:
        # Small calls are the faster ones by the byte, or noise: no fixed cost is seen.
        return ReadRate((small_bytes + large_bytes) / (small_s + large_s), 0.0)
    return ReadRate(1.0 / slope, call_s)
