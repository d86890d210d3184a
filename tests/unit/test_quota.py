"""What a quota of processor time leaves of a board's rate, in cgroups of both versions."""

from pathlib import Path

import pytest

from agent.quota import Quota


class Group:
    """A group of either version, in a file system of the test's own."""

    def __init__(self, root: Path, version: int) -> None:
        (root / "proc/self").mkdir(parents=True)
        line = "0::/board\n" if version == 2 else "3:cpu,cpuacct:/board\n"
        (root / "proc/self/cgroup").write_text(line)
        self._version = version
        self._directory = root / "sys/fs/cgroup" / ("" if version == 2 else "cpu") / "board"
        self._directory.mkdir(parents=True)

    def limit(self, quota_us: int | None) -> None:
        if self._version == 2:
            (self._directory / "cpu.max").write_text(f"{quota_us or 'max'} 5000\n")
        else:
            (self._directory / "cpu.cfs_quota_us").write_text(f"{quota_us or -1}\n")
            (self._directory / "cpu.cfs_period_us").write_text("5000\n")


@pytest.fixture(params=[1, 2])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Group:
    return Group(tmp_path, request.param)


def test_a_quota_leaves_its_part_of_what_the_threads_could_do(group: Group, tmp_path: Path) -> None:
    quota = Quota(2, tmp_path)
    assert quota.left(1e9) == 1e9
    group.limit(None)
    assert quota.left(1e9) == 1e9
    group.limit(1500)
    assert quota.left(1e9) == pytest.approx(0.15e9)
    # With little work it is never stopped: its calls are as fast as before, or faster for once.
    assert quota.left(1.1e9) == pytest.approx(0.15e9)
    assert quota.left(1.1e9) == pytest.approx(0.15e9)
    assert quota.left(1.1e9) == pytest.approx(0.165e9)
    group.limit(10_000)
    assert quota.left(1e9) == 1e9


def test_what_calls_show_of_a_quota_does_not_count_twice(group: Group, tmp_path: Path) -> None:
    group.limit(1500)
    quota = Quota(1, tmp_path)
    assert quota.left(1e9) == pytest.approx(0.3e9)
    assert quota.left(0.5e9) == pytest.approx(0.3e9)
    assert quota.left(0.2e9) == pytest.approx(0.2e9)


def test_a_board_that_starts_under_a_quota_is_known_by_its_light_calls(
    group: Group, tmp_path: Path
) -> None:
    group.limit(1500)
    quota = Quota(1, tmp_path)
    assert quota.left(0.4e9) == pytest.approx(0.12e9)
    for _ in range(3):
        quota.left(1e9)
    assert quota.left(1e9) == pytest.approx(0.3e9)
    assert quota.left(0.4e9) == pytest.approx(0.3e9)
