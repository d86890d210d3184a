import os

import pytest

from agent.memory import Free, Memory, available_memory_bytes
from agent.resources import (
    check_platform,
    check_this_platform,
    cpu_quota,
    describe_machine,
    memory_budget_bytes,
    parse_cgroup_paths,
    parse_meminfo_available,
    usable_cores,
)
from kernels.errors import ResourceError

MIB = 1 << 20
MEMINFO = """MemTotal:        3884372 kB
MemFree:          214508 kB
MemAvailable:    2097152 kB
HugePages_Total:       0
"""


def write(root, files):
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def test_meminfo():
    assert parse_meminfo_available(MEMINFO) == 2048 * MIB
    old_kernel = "\n".join(line for line in MEMINFO.splitlines() if "Available" not in line)
    assert parse_meminfo_available(old_kernel) == 214508 * 1024
    with pytest.raises(ResourceError, match="--memory"):
        parse_meminfo_available("garbage\n:\nMemFree: x")


def test_cgroup_paths():
    hybrid = "12:memory:/a/b\n3:cpu,cpuacct:/c\n0::/user.slice/x:y.scope\nnonsense\n"
    assert parse_cgroup_paths(hybrid) == {
        "memory": "/a/b", "cpu": "/c", "cpuacct": "/c", "": "/user.slice/x:y.scope"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "expected_mib"),
    [
        ({}, 2048),
        ({"sys/fs/cgroup/memory.max": "max\n"}, 2048),
        (
            {
                "proc/self/cgroup": "0::/system.slice/agent.service\n",
                "sys/fs/cgroup/system.slice/agent.service/memory.max": f"{900 * MIB}\n",
                "sys/fs/cgroup/system.slice/agent.service/memory.current": f"{500 * MIB}\n",
                "sys/fs/cgroup/system.slice/agent.service/memory.stat": (
                    f"anon {100 * MIB}\ninactive_file {300 * MIB}\n"
                ),
                "sys/fs/cgroup/system.slice/memory.max": "max\n",
            },
            700,
        ),
        (  # the parent's limit is the tighter one
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": f"{900 * MIB}\n",
                "sys/fs/cgroup/a/memory.max": f"{400 * MIB}\n",
                "sys/fs/cgroup/a/memory.current": f"{100 * MIB}\n",
            },
            300,
        ),
        (  # v1, in a container: the path lies outside what is mounted
            {
                "proc/self/cgroup": "4:memory:/docker/0123\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{512 * MIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{200 * MIB}\n",
                "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {50 * MIB}\n",
            },
            362,
        ),
        (  # v1 without a limit
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{200 * MIB}\n",
            },
            2048,
        ),
        (  # over its limit already
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "1000\n",
                "sys/fs/cgroup/a/memory.current": "2000\n",
            },
            0,
        ),
        ({"proc/self/cgroup": "0::/../../etc\n"}, 2048),
    ],
)
def test_available_memory_under_cgroups(tmp_path, files, expected_mib):
    write(tmp_path, {"proc/meminfo": MEMINFO, **files})
    assert available_memory_bytes(tmp_path) == expected_mib * MIB


@pytest.mark.parametrize(
    ("prefix", "directory", "line", "limit", "usage"),
    [
        ("", "sys/fs/cgroup/a", "0::/a", "memory.max", "memory.current"),
        ("total_", "sys/fs/cgroup/memory/a", "4:memory:/a", "memory.limit_in_bytes",
         "memory.usage_in_bytes"),
    ],
)  # fmt: skip
def test_mapped_files_are_free_in_effect(tmp_path, prefix, directory, line, limit, usage):
    stat = f"{prefix}inactive_file {10 * MIB}\n{prefix}active_file {30 * MIB}\n"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": f"{line}\n",
        f"{directory}/{limit}": f"{100 * MIB}\n",
        f"{directory}/{usage}": f"{60 * MIB}\n",
        f"{directory}/memory.stat": stat,
    }
    write(tmp_path, files)
    memory = Memory(tmp_path)
    assert memory.look() == Free(50 * MIB, 80 * MIB)
    # Files stay open from here on.
    write(tmp_path, {f"{directory}/{usage}": f"{90 * MIB}\n"})
    assert memory.look() == Free(20 * MIB, 50 * MIB)
    write(tmp_path, {f"{directory}/{limit}": "max\n"})
    assert memory.look() == Free(2048 * MIB, 2048 * MIB)
    write(tmp_path, {"proc/meminfo": "MemAvailable: 1024 kB\n"})
    assert memory.look() == Free(MIB, MIB)


def test_a_process_that_is_put_into_another_cgroup_notices(tmp_path):
    limits = {"a": 300, "b": 200}
    write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a\n"})
    memory = Memory(tmp_path)
    assert memory.look().available_bytes == 2048 * MIB
    for name, limit_mib in limits.items():
        write(tmp_path, {f"sys/fs/cgroup/{name}/memory.max": f"{limit_mib * MIB}\n"})
    assert memory.look().available_bytes == 300 * MIB
    write(tmp_path, {"proc/self/cgroup": "0::/b\n"})
    assert memory.look().available_bytes == 200 * MIB


def test_looking_again_opens_nothing(tmp_path):
    write(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/a\n"})
    write(tmp_path, {"sys/fs/cgroup/a/memory.max": f"{100 * MIB}\n"})
    memory = Memory(tmp_path)
    memory.look()
    n_open = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        memory.look()
    assert len(os.listdir("/proc/self/fd")) == n_open
    del memory
    assert len(os.listdir("/proc/self/fd")) == n_open - 3


@pytest.mark.parametrize(
    ("available_mib", "wanted_mib", "offered_mib"),
    [(1000, None, 900), (1000, 300, 300), (1000, 5000, 900), (100, None, 36), (30, None, 0),
     (100_000, None, 100_000 - 512)],
)  # fmt: skip
def test_a_reserve_stays_free(available_mib, wanted_mib, offered_mib):
    wanted_bytes = None if wanted_mib is None else wanted_mib * MIB
    assert memory_budget_bytes(available_mib * MIB, wanted_bytes) == offered_mib * MIB


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_cpu_quota(tmp_path, files, quota):
    write(tmp_path, files)
    assert cpu_quota(tmp_path) == quota
    assert usable_cores(tmp_path) >= 1


def test_other_machines_are_refused_with_what_to_do():
    check_platform("aarch64", 8, "Linux")
    for machine, pointer_bytes, system in [
        ("armv7l", 4, "Linux"), ("aarch64", 4, "Linux"), ("x86_64", 8, "Darwin")
    ]:  # fmt: skip
        with pytest.raises(ResourceError, match=f"Python on {system} {machine}.*64-bit image"):
            check_platform(machine, pointer_bytes, system)


def test_this_machine():
    check_this_platform()
    assert available_memory_bytes() > 0
    assert "Linux" in describe_machine()
