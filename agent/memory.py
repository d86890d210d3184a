"""How much memory this process may still use: the system's view and every cgroup's, v1 and v2.

Heartbeats ask several times a second, so files stay open between two looks, and are read in one
call each; opening them anew costs ten times as much. A process that is put into another group, or
whose limit changes, notices at its next look.
"""

import contextlib
import os
import weakref
from pathlib import Path
from typing import NamedTuple

from agent.resources import (
    ROOT,
    cgroup_directories,
    parse_limit,
    parse_meminfo_available,
    parse_stat,
)

__all__ = ["Free", "Memory", "available_memory_bytes"]

# More than any of these files holds.
MAX_FILE_BYTES = 16 << 10


class Free(NamedTuple):
    """What may still be used.

    Attributes:
        available_bytes: by the kernel's own reckoning.
        unmapped_bytes: if no file were mapped or cached. Weights are mapped files; whether the
            kernel counts their pages as free depends on what it has lately reclaimed.
    """

    available_bytes: int
    unmapped_bytes: int


class Memory:
    """Looks at one process's memory, again and again.

    Args:
        root: of the file system, so that tests can feed it other boards.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._system = _Kept(root / "proc/meminfo")
        self._groups_file = _Kept(root / "proc/self/cgroup")
        self._groups_text: str | None = None
        self._groups: list[_Group] = []

    def look(self) -> Free:
        """Return what is free now.

        Raises:
            ResourceError: the system does not say.
        """
        system_bytes = parse_meminfo_available(self._system.read())
        text = self._groups_file.read()
        if text != self._groups_text:
            self._groups_text, self._groups = text, _groups(self._root)
        free = [Free(system_bytes, system_bytes), *(g.look() for g in self._groups)]
        return Free(
            min(each.available_bytes for each in free), min(each.unmapped_bytes for each in free)
        )


def available_memory_bytes(root: Path = ROOT) -> int:
    """Return how much more memory this process may use, for whoever asks once.

    Raises:
        ResourceError: the system does not say.
    """
    return Memory(root).look().available_bytes


class _Kept:
    """A file that stays open once it could be opened."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._fd = -1
        self._closer: weakref.finalize[[int], _Kept] | None = None

    def read(self) -> str:
        """Return what it holds now, "" if it cannot be read."""
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                self._closer = weakref.finalize(self, os.close, self._fd)
            return os.pread(self._fd, MAX_FILE_BYTES, 0).decode(errors="replace")
        except OSError:
            # It is not there, or is gone with its group: the next look tries anew.
            if self._closer is not None:
                with contextlib.suppress(OSError):
                    self._closer()
            self._fd, self._closer = -1, None
            return ""


class _Group(NamedTuple):
    """One cgroup above this process; `prefix` is that of its counters in v1."""

    limit: _Kept
    usage: _Kept
    stat: _Kept
    prefix: str

    def look(self) -> Free:
        """Return what its limit still leaves; without one, more than any machine has."""
        limit_bytes = parse_limit(self.limit.read())
        if limit_bytes is None:
            return _UNLIMITED
        used_bytes, stat = parse_limit(self.usage.read()) or 0, self.stat.read()
        inactive_bytes = parse_stat(stat, f"{self.prefix}inactive_file")
        cached_bytes = inactive_bytes + parse_stat(stat, f"{self.prefix}active_file")
        return Free(
            max(0, limit_bytes - max(0, used_bytes - inactive_bytes)),
            max(0, limit_bytes - max(0, used_bytes - cached_bytes)),
        )


_UNLIMITED = Free(1 << 62, 1 << 62)


def _groups(root: Path) -> list[_Group]:
    """Return this process's memory cgroups, of both versions, and all above them."""
    names = {
        "": ("memory.max", "memory.current", ""),
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    }
    return [
        _Group(_Kept(path / limit), _Kept(path / usage), _Kept(path / "memory.stat"), prefix)
        for controller, (limit, usage, prefix) in names.items()
        for path in cgroup_directories(root, controller)
    ]
