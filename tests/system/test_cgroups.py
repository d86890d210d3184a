"""Cgroups that tools make for boards; they need root and a controller that can be used."""

import subprocess
import sys
from pathlib import Path

import pytest

from kernels.errors import ResourceError
from tools.faults.cgroups import CpuGroup, Group, GroupedCables, MemoryGroup, no_group

BUSY = (sys.executable, "-c", "sum(range(5_000_000))")
HELD = (sys.executable, "-c", "held = b'x' * (64 << 20)")


@pytest.mark.skipif(bool(no_group("cpu")), reason=no_group("cpu"))
def test_a_process_in_a_group_is_stopped_once_its_time_of_a_period_is_over() -> None:
    group = CpuGroup()
    try:
        subprocess.run(group.enter(BUSY), check=True)
        assert group.throttled[0] == 0
        group.limit(0.3, 5000)
        subprocess.run(group.enter(BUSY), check=True)
        n_throttled, n_periods = group.throttled
        assert 0 < n_throttled <= n_periods
        cables = GroupedCables({"slow": group})
        assert [*cables.prefix("slow"), *BUSY] == list(group.enter(BUSY))
        assert not cables.prefix("other")
    finally:
        group.close()


@pytest.mark.skipif(bool(no_group("memory")), reason=no_group("memory"))
def test_a_process_that_takes_more_than_its_group_may_is_killed_and_counted() -> None:
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        pytest.skip("this machine swaps instead")
    roomy, tight = MemoryGroup(None), MemoryGroup(32 << 20)
    try:
        subprocess.run(roomy.enter(HELD), check=True)
        assert subprocess.run(tight.enter(HELD), check=False).returncode != 0
        assert (roomy.n_oom_kills, tight.n_oom_kills) == (0, 1)
        assert tight.anonymous_bytes < 32 << 20
    finally:
        roomy.close()
        tight.close()


def test_a_controller_that_nobody_has_is_told_of() -> None:
    with pytest.raises(ResourceError, match="no frobnication controller"):
        Group("frobnication")
