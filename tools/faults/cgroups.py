"""Real cgroups, v2 or v1, in which processes get less memory or processor time. Needs root."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.resources import parse_cgroup_paths, parse_stat
from kernels.errors import ResourceError
from tools.faults.direct import DirectCables

__all__ = ["CpuGroup", "Group", "GroupedCables", "MemoryGroup", "no_group"]

ROOT = Path("/sys/fs/cgroup")
# Runs the rest of its command line inside the group named first.
ENTER = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"')
_numbers = itertools.count()


def _parent(controller: str) -> tuple[Path, bool] | None:
    """Return where a group can be made and whether that is v2; None = nowhere."""
    controllers = ROOT / "cgroup.subtree_control"
    if controllers.exists() and controller in controllers.read_text().split():
        return ROOT, True
    ours = parse_cgroup_paths(Path("/proc/self/cgroup").read_text()).get(controller)
    if ours is None or not (ROOT / controller / ours.lstrip("/")).is_dir():
        return None
    return ROOT / controller / ours.lstrip("/"), False


def no_group(controller: str) -> str:
    """Return why no cgroup of a controller, "memory" or "cpu", can be made here, or ""."""
    found = _parent(controller)
    if found is None:
        return f"this system has no {controller} controller of cgroups that can be used"
    return "" if os.access(found[0], os.W_OK) else f"{found[0]} is not ours to write: run as root"


class Group:
    """A cgroup of its own.

    Args:
        controller: "memory" or "cpu".

    Raises:
        ResourceError: none can be made here.
    """

    def __init__(self, controller: str) -> None:
        why, found = no_group(controller), _parent(controller)
        if why or found is None:
            raise ResourceError(why)
        parent, self._is_v2 = found
        self._path = parent / f"headwise-{os.getpid()}-{next(_numbers)}"
        self._path.mkdir()

    def enter(self, program: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the command line that runs a program, or what follows, inside the group."""
        return (*ENTER, str(self._path), *program)

    def _write(self, v1_name: str, v2_name: str, text: str) -> None:
        (self._path / (v2_name if self._is_v2 else v1_name)).write_text(text)

    def _read(self, v1_name: str, v2_name: str) -> str:
        return (self._path / (v2_name if self._is_v2 else v1_name)).read_text()

    def close(self) -> None:
        """Remove the group; its processes must have ended."""
        self._path.rmdir()


class MemoryGroup(Group):
    """A cgroup with a limit.

    Args:
        limit_bytes: what its processes may use together, page cache included; None for no limit.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        super().__init__("memory")
        if limit_bytes is not None:
            self._write("memory.limit_in_bytes", "memory.max", str(limit_bytes))

    @property
    def n_oom_kills(self) -> int:
        """Processes that were killed for lack of memory."""
        return parse_stat(self._read("memory.oom_control", "memory.events"), "oom_kill")

    @property
    def anonymous_bytes(self) -> int:
        """What its processes use, page cache not included."""
        stat = self._read("memory.stat", "memory.stat")
        return parse_stat(stat, "anon" if self._is_v2 else "total_rss")


class CpuGroup(Group):
    """A cgroup whose processes get as much processor time as they want, until `limit`."""

    def __init__(self) -> None:
        super().__init__("cpu")

    def limit(self, cores: float, period_us: int) -> None:
        """Let its processes run for so many cores' time of each period, and then not at all."""
        quota_us = round(cores * period_us)
        if self._is_v2:
            self._write("", "cpu.max", f"{quota_us} {period_us}")
        else:
            self._write("cpu.cfs_period_us", "", str(period_us))
            self._write("cpu.cfs_quota_us", "", str(quota_us))

    @property
    def throttled(self) -> tuple[int, int]:
        """Periods in which its processes were stopped, and all in which they ran."""
        stat = self._read("cpu.stat", "cpu.stat")
        return parse_stat(stat, "nr_throttled"), parse_stat(stat, "nr_periods")


class GroupedCables(DirectCables):
    """Loopback links of boards of which some run in cgroups.

    Args:
        groups: by the board's name.
    """

    def __init__(self, groups: Mapping[str, Group]) -> None:
        super().__init__()
        self._groups = groups

    def prefix(self, board: str) -> Sequence[str]:
        """Return what starts a board's process in its group."""
        group = self._groups.get(board)
        return () if group is None else group.enter()
