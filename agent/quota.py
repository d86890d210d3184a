"""What a quota leaves a board of its processor.

A process that may run for a part of each period only is stopped while it waits for a frame as
well as in its kernels, and answers late: what calls take does not show that. And with less work it
is not stopped at all and seems as fast as ever. So the quota itself is looked at, which may change
at any time.
"""

from pathlib import Path

from agent.resources import ROOT, cpu_quota

__all__ = ["Quota"]


class Quota:
    """What kernels can do under the tightest quota of this process's cgroups, v1 and v2.

    Args:
        n_threads: that kernels run in.
        root: of the file system, so that tests can feed it other boards.
    """

    def __init__(self, n_threads: int, root: Path = ROOT) -> None:
        self._n_threads = n_threads
        self._root = root
        self._full_bytes_per_s = 0.0

    def left(self, bytes_per_s: float) -> float:
        """Return what is left of a rate that calls show."""
        cores = cpu_quota(self._root)
        if cores is None or cores >= self._n_threads:
            self._full_bytes_per_s = bytes_per_s
            return bytes_per_s
        # The fastest so far: what calls show of the quota does not count twice.
        self._full_bytes_per_s = max(self._full_bytes_per_s, bytes_per_s)
        return min(bytes_per_s, self._full_bytes_per_s * cores / self._n_threads)
