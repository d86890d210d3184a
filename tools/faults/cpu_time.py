"""How much of a core each thread of a process takes, as the kernel counts it."""

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

from kernels.errors import RemoteError

__all__ = ["CpuTimes", "Shares"]


class Shares(NamedTuple):
    """Parts of one core between two looks, as fractions.

    Attributes:
        threads: by name; threads of one name together. The main thread's is "main".
    """

    total: float
    threads: dict[str, float]


class CpuTimes:
    """The CPU times of one process, from now on.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before_s, self._ns = time.monotonic(), self._look()

    def shares(self) -> Shares:
        """Return what it has taken since this was made; threads that have ended count nothing."""
        now = self._look()
        elapsed_s = time.monotonic() - self._before_s
        threads: dict[str, float] = {}
        for tid, (name, ns) in now.items():
            took_ns = ns - self._ns.get(tid, (name, 0))[1]
            threads[name] = threads.get(name, 0.0) + 1e-9 * took_ns / elapsed_s
        return Shares(sum(threads.values()), threads)

    def _look(self) -> dict[int, tuple[str, int]]:
        """Return name and nanoseconds of each thread, by its id.

        Raises:
            RemoteError: the process has ended.
        """
        found: dict[int, tuple[str, int]] = {}
        for task in Path(f"/proc/{self._pid}/task").glob("*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # In nanoseconds; `stat` counts in hundredths of a second.
                ns = int((task / "schedstat").read_text().split()[0])
                is_main = int(task.name) == self._pid
                name = "main" if is_main else (task / "comm").read_text().strip()
                found[int(task.name)] = (name, ns)
        if self._pid not in found:
            raise RemoteError(f"process {self._pid} has ended")
        return found
