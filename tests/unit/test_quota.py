"""What a quota of processor time withholds, as cgroups of both versions tell it."""

from pathlib import Path

import pytest

from agent import quota as quota_module
from agent.quota import Quota


class Group:
    """The counters of a group of either version, in a file system of the test's own."""

    def __init__(self, root: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.version = version
        (root / "proc/self").mkdir(parents=True)
        line = "0::/board\n" if version == 2 else "3:cpu,cpuacct:/board\n"
        (root / "proc/self/cgroup").write_text(line)
        self._file = root / "sys/fs/cgroup" / ("" if version == 2 else "cpu") / "board/cpu.stat"
        self._file.parent.mkdir(parents=True)
        self.process_s = 0.0
        monkeypatch.setattr(quota_module.time, "process_time", lambda: self.process_s)

    def count(self, used_s: float, withheld_s: float) -> None:
        self.process_s = used_s
        used, withheld = f"usage_usec {1e6 * used_s:.0f}", f"throttled_usec {1e6 * withheld_s:.0f}"
        if self.version == 1:
            used, withheld = "nr_periods 5", f"throttled_time {1e9 * withheld_s:.0f}"
        self._file.write_text(f"{used}\nnr_throttled 1\n{withheld}\n")

    def vanish(self) -> None:
        self._file.unlink()


@pytest.fixture(params=[1, 2])
def group(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    return Group(tmp_path, request.param, monkeypatch)


def test_what_is_granted_is_what_ran_of_what_wanted_to(group: Group, tmp_path: Path) -> None:
    group.count(10.0, 100.0)
    quota = Quota(tmp_path)
    group.count(10.12, 100.28)
    assert quota.granted() == pytest.approx(0.3)
    # Since then it has not been stopped.
    group.count(10.5, 100.28)
    assert quota.granted() == 1.0


def test_without_counters_all_is_granted(group: Group, tmp_path: Path) -> None:
    assert Quota(tmp_path).granted() == 1.0
    group.count(1.0, 5.0)
    quota = Quota(tmp_path)
    group.vanish()
    assert quota.granted() == 1.0
    # The counters of another group begin anew.
    group.count(0.1, 0.0)
    assert quota.granted() == 1.0


def test_a_process_that_hardly_runs_tells_nothing(group: Group, tmp_path: Path) -> None:
    group.count(1.0, 5.0)
    quota = Quota(tmp_path)
    group.count(1.0001, 5.0005)
    assert quota.granted() == 1.0
