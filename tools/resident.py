"""What of a process is resident, by mapping: /proc/PID/smaps, added up.

The figure of an agent is its resident set less what it serves from: mappings of the model
directory or the weight cache, and the KV pool. Shared libraries count in full.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Resident", "cpu_s", "parse_smaps", "read_resident"]

_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S{4} [0-9a-f]+ \S+ \d+ *(.*)")
_ANONYMOUS = "anonymous memory"


class Resident(NamedTuple):
    """Resident bytes of a process.

    Attributes:
        total_bytes: all of them, VmRSS as smaps has it.
        weights_bytes: of mappings of files below the given directories.
        kv_bytes: the KV pool, as the agent reports it; it writes its pool in full at once.
        by_name: of each file or kind of memory, pages of `weights_bytes` left out.
    """

    total_bytes: int
    weights_bytes: int
    kv_bytes: int
    by_name: dict[str, int]

    @property
    def own_bytes(self) -> int:
        """What the process takes by itself, whatever model it serves."""
        return self.total_bytes - self.weights_bytes - self.kv_bytes

    @property
    def private_bytes(self) -> int:
        """The part of it that no file backs, and that no state of the page cache changes."""
        private = (n for name, n in self.by_name.items() if not name.startswith("/"))
        return sum(private) - self.kv_bytes

    def files(self) -> set[Path]:
        """Return the mapped files, libraries most of them."""
        return {Path(name) for name in self.by_name if name.startswith("/")}


def parse_smaps(text: str) -> Counter[str]:
    """Return the resident bytes of each mapped file and kind of memory in an smaps text."""
    found: Counter[str] = Counter()
    name = _ANONYMOUS
    for line in text.splitlines():
        if header := _HEADER.fullmatch(line):
            name = header[1].removesuffix(" (deleted)") or _ANONYMOUS
        elif line.startswith("Rss:"):
            found[name] += 1024 * int(line.split()[1])
    return found


def read_resident(pid: int, weights_in: Iterable[Path], kv_bytes: int) -> Resident:
    """Measure a running process.

    Args:
        pid: of the process.
        weights_in: directories whose files hold weights.
        kv_bytes: size of its KV pools.
    """
    by_name = parse_smaps(Path(f"/proc/{pid}/smaps").read_text())
    roots = [directory.resolve() for directory in weights_in]
    weights = [name for name in by_name if _is_below(name, roots)]
    total_bytes = by_name.total()
    weights_bytes = sum(by_name.pop(name) for name in weights)
    return Resident(total_bytes, weights_bytes, kv_bytes, dict(by_name.most_common()))


def _is_below(name: str, roots: Sequence[Path]) -> bool:
    return name.startswith("/") and any(Path(name).is_relative_to(root) for root in roots)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that all threads of a process have taken, but for those that ended."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9
