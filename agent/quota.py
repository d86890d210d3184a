"""What a quota leaves a board of its processor.

A process that may run for a part of each period only is stopped while it waits for a frame as
well as in its kernels, and answers late: what calls take does not show that. And with less work it
is not stopped at all and seems as fast as ever. So the quota itself is looked at, which may change
at any time.
"""

from pathlib import Path

from agent.resources import ROOT, cpu_quota

__all__ = ["Quota"]

# What must have been shown so often to count as the full rate: a single one may be noise.
N_SHOWN = 3


class Quota:
    """What kernels can do under the tightest quota of this process's cgroups, v1 and v2.

    Args:
        n_threads: that kernels run in.
        root: of the file system, so that tests can feed it other boards.
    """

    def __init__(self, n_threads: int, root: Path = ROOT) -> None:
        self._n_threads = n_threads
        self._root = root
        # The highest rates shown, ascending; the first one, or the last without a quota, is sure.
        self._best: list[float] = []

    def left(self, bytes_per_s: float) -> float:
        """Return what is left of a rate that calls show."""
        cores = cpu_quota(self._root)
        if cores is None or cores >= self._n_threads:
            self._best = [bytes_per_s] * N_SHOWN
            return bytes_per_s
        # The fastest: what calls show of the quota does not count twice.
        shown = self._best or [bytes_per_s] * N_SHOWN
        self._best = sorted([*shown, bytes_per_s])[-N_SHOWN:]
        return min(bytes_per_s, self._best[0] * cores / self._n_threads)
