"""Whatever else runs on a board, and takes more and more of its memory."""

import subprocess
import sys
from pathlib import Path

from kernels.errors import ResourceError
from tools.faults.cgroups import MemoryGroup

__all__ = ["Ballast"]

HOLD = """
import sys
held = []
for line in sys.stdin:
    held.append(b"x" * int(line))
    print(flush=True)
"""


class Ballast:
    """A process in a cgroup that takes memory bit by bit."""

    def __init__(self, group: MemoryGroup) -> None:
        self._process = subprocess.Popen(
            group.enter((sys.executable, "-c", HOLD)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.n_bytes = 0

    def grow(self, n_bytes: int) -> None:
        """Take so many more bytes, and return once they are there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{n_bytes}\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise ResourceError(
                "the ballast was killed: it took memory faster than boards could react"
            )
        self.n_bytes += n_bytes

    @property
    def n_resident_bytes(self) -> int:
        """What the process uses, itself included."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("RssAnon:"))
        return 1024 * int(line.split()[1])

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
