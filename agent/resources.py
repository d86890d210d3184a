"""What this board can give: cores under cgroup v1 and v2 limits, and how much of its memory.

The parsing functions take texts, so that tests feed them samples of other systems; the reading
functions at the end take the root of the file system for the same reason.
"""

import math
import os
import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from kernels.errors import ResourceError

__all__ = [
    "ROOT",
    "cgroup_directories",
    "check_platform",
    "check_this_platform",
    "cpu_quota",
    "describe_machine",
    "memory_budget_bytes",
    "parse_cgroup_paths",
    "parse_limit",
    "parse_meminfo_available",
    "parse_stat",
    "reserve_bytes",
    "usable_cores",
]

MACHINES = ("x86_64", "aarch64")
MIN_RESERVE_BYTES = 64 << 20
MAX_RESERVE_BYTES = 512 << 20
# cgroup v1 writes "no limit" as a huge number of pages.
UNLIMITED_BYTES = 1 << 60
# Searched for several times a second: taking the whole file apart costs more than reading it.
_MEM_AVAILABLE, _MEM_FREE = (
    re.compile(rf"^{name}:[ \t]*(\d+)([ \t]*kB)?[ \t]*$", re.MULTILINE)
    for name in ("MemAvailable", "MemFree")
)

ROOT = Path("/")


def check_platform(machine: str, pointer_bytes: int, system: str) -> None:
    """Refuse machines that headwise has no kernels for.

    Raises:
        ResourceError: not a 64-bit Linux on x86-64 or ARM.
    """
    if system != "Linux" or machine not in MACHINES or pointer_bytes != 8:
        raise ResourceError(
            f"this is {8 * pointer_bytes}-bit Python on {system} {machine}; an agent needs a "
            f"64-bit system and Python on Linux, {' or '.join(MACHINES)}: on a Raspberry Pi "
            f"install the 64-bit image"
        )


def check_this_platform() -> None:
    """Refuse this machine if it is none of those that headwise runs on."""
    check_platform(platform.machine(), struct.calcsize("P"), platform.system())


def describe_machine() -> str:
    """Return a short text for status tables, such as `aarch64 Linux 6.6 py3.11`."""
    release = ".".join(platform.release().split(".")[:2])
    version = ".".join(platform.python_version_tuple()[:2])
    return f"{platform.machine()} {platform.system()} {release} py{version}"


# Parsing.


def parse_meminfo_available(text: str) -> int:
    """Return the bytes of MemAvailable in the text of /proc/meminfo.

    Raises:
        ResourceError: neither MemAvailable nor MemFree is listed.
    """
    found = _MEM_AVAILABLE.search(text) or _MEM_FREE.search(text)
    if found is None:
        raise ResourceError(
            "/proc/meminfo names no available memory; state how much to use with --memory"
        )
    return int(found[1]) * (1024 if found[2] else 1)


def parse_cgroup_paths(text: str) -> dict[str, str]:
    """Return the cgroup path of each controller in /proc/self/cgroup; "" is the v2 tree."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                paths[controller] = parts[2]
    return paths


def parse_limit(text: str) -> int | None:
    """Return a limit in bytes; None for `max`, huge v1 numbers and anything unreadable."""
    text = text.strip()
    if not text.isdigit() or int(text) >= UNLIMITED_BYTES:
        return None
    return int(text)


def parse_stat(text: str, name: str) -> int:
    """Return one counter of a memory.stat text, 0 if it is not there."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 2 and fields[0] == name and fields[1].isdigit():
            return int(fields[1])
    return 0


def parse_cpu_max(text: str) -> float | None:
    """Return the cores that a cgroup v2 cpu.max text allows; None without a limit."""
    fields = text.split()
    if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit() and int(fields[1]):
        return int(fields[0]) / int(fields[1])
    return None


# Reading.


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def cgroup_directories(root: Path, controller: str) -> Iterator[Path]:
    """Yield this process's directory of a controller ("" = v2) and all above it.

    In a container the path of /proc/self/cgroup may lie outside what is mounted; then only the
    mounted root counts, which is the container's own group.
    """
    path = parse_cgroup_paths(_read(root / "proc/self/cgroup")).get(controller)
    if path is None:
        return
    top = root / "sys/fs/cgroup" / controller
    here = Path(os.path.normpath(f"{top}/{path.lstrip('/')}"))
    while here != top and top in here.parents:
        yield here
        here = here.parent
    yield top


def reserve_bytes(available_bytes: int) -> int:
    """Return what of the memory that an agent finds when it starts stays free for the system."""
    return min(max(available_bytes // 10, MIN_RESERVE_BYTES), MAX_RESERVE_BYTES)


def memory_budget_bytes(available_bytes: int, wanted_bytes: int | None) -> int:
    """Return the memory to offer for weights and KV.

    A reserve stays free for the system: a board that drops clean pages of its weights decodes
    at the speed of its SD card. `wanted_bytes` is the user's --memory, an upper limit.
    """
    budget = max(0, available_bytes - reserve_bytes(available_bytes))
    return budget if wanted_bytes is None else min(budget, wanted_bytes)


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the cores that the tightest cgroup quota allows, or None without one."""
    quotas = [parse_cpu_max(_read(d / "cpu.max")) for d in cgroup_directories(root, "")]
    for directory in cgroup_directories(root, "cpu"):
        quota = _read(directory / "cpu.cfs_quota_us").strip()
        period = _read(directory / "cpu.cfs_period_us").strip()
        quotas.append(parse_cpu_max(f"{quota} {period}"))
    return min((q for q in quotas if q is not None), default=None)


def usable_cores(root: Path = ROOT) -> int:
    """Return the cores this process may use: its affinity, under any cgroup quota."""
    n_cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return n_cores if quota is None else max(1, min(n_cores, math.ceil(quota)))
