"""How much of the processor time that a board wants a quota withholds: cgroups' own counters.

A process that is stopped for a part of each period need not be so in its kernels: it is stopped
while it waits for a frame as well, and answers late. What calls take does not show that.
"""

import time
from pathlib import Path
from typing import NamedTuple

from agent.resources import ROOT, cgroup_directories, parse_stat

__all__ = ["Quota"]

# Less processor time than that says nothing.
LEAST_S = 1e-3


class _Counters(NamedTuple):
    """Seconds that a group's processes ran, and in which they wanted to and were stopped.

    Groups of version 1 count both in different places, which may be of different processes: there
    what ran is this process.
    """

    used_s: float = 0.0
    withheld_s: float = 0.0


class Quota:
    """Looks at the cgroups of this process, of both versions, and at all above them.

    Args:
        root: of the file system, so that tests can feed it other boards.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._v2 = list(cgroup_directories(root, ""))
        self._v1 = list(cgroup_directories(root, "cpu"))
        self._before = self._look()

    def granted(self) -> float:
        """Return which part of what it wanted was granted since this was asked last; 1 = all."""
        before, self._before = self._before, self._look()
        return min(map(_granted, before, self._before), default=1.0)

    def _look(self) -> list[_Counters]:
        return [*map(_read_v2, self._v2), *map(_read_v1, self._v1)]


def _granted(before: _Counters, now: _Counters) -> float:
    used_s, withheld_s = now.used_s - before.used_s, now.withheld_s - before.withheld_s
    # A group that one was put into, or whose counters cannot be read any more.
    if withheld_s <= 0.0 or used_s < 0.0 or used_s + withheld_s < LEAST_S:
        return 1.0
    return used_s / (used_s + withheld_s)


def _read_v2(directory: Path) -> _Counters:
    stat = _text(directory / "cpu.stat")
    if "throttled_usec" not in stat:
        return _Counters()
    used_us, withheld_us = (parse_stat(stat, name) for name in ("usage_usec", "throttled_usec"))
    return _Counters(1e-6 * used_us, 1e-6 * withheld_us)


def _read_v1(directory: Path) -> _Counters:
    stat = _text(directory / "cpu.stat")
    if "throttled_time" not in stat:
        return _Counters()
    return _Counters(time.process_time(), 1e-9 * parse_stat(stat, "throttled_time"))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
