"""What is found out about the CPU on a machine that this one is not."""

import os
from pathlib import Path

import pytest

from kernels import target

ASIMDDP = 1 << 20


class Features(dict[str, bool]):
    """What LLVM says."""

    def flatten(self) -> str:
        return ",".join(f"{'+' if present else '-'}{name}" for name, present in self.items())


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An ARM board as LLVM sees it, whose numba has not been told anything."""
    seen = Features(neon=True, lse=True, sve=False)
    monkeypatch.setattr(target.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(target.llvm, "get_host_cpu_features", lambda: seen)
    for setting in ("CPU_NAME", "CPU_FEATURES"):
        monkeypatch.setattr(target.config, setting, None)
    monkeypatch.delenv(target.PLAIN_VARIABLE, raising=False)
    return monkeypatch


def features() -> frozenset[str]:
    found: frozenset[str] = target._features.__wrapped__()
    return found


def test_dotprod_is_asked_of_the_kernel_and_told_to_numba(board: pytest.MonkeyPatch) -> None:
    board.setattr(target, "_hardware_capabilities", lambda: ASIMDDP | 0x8FB)
    assert features() == {"arm64", "neon", "lse", "dotprod"}
    assert target.config.CPU_FEATURES == "+neon,+lse,-sve,+dotprod"


def test_boards_without_dotprod_are_left_alone(board: pytest.MonkeyPatch) -> None:
    board.setattr(target, "_hardware_capabilities", lambda: 0x8FB)
    assert features() == {"arm64", "neon", "lse"}
    assert target.config.CPU_FEATURES is None


def test_what_numba_was_told_counts(board: pytest.MonkeyPatch) -> None:
    board.setattr(target, "_hardware_capabilities", lambda: ASIMDDP)
    board.setattr(target.config, "CPU_NAME", "cortex-a72")
    assert features() == {"arm64"}
    board.setattr(target.config, "CPU_FEATURES", "+neon,-lse")
    assert features() == {"arm64", "neon"}
    board.setenv(target.PLAIN_VARIABLE, "plain")
    assert features() == frozenset()


def test_this_cpu_has_what_the_kernel_shows() -> None:
    forced = target.config.CPU_NAME or os.environ.get("NUMBA_CPU_FEATURES")
    if forced or os.environ.get(target.PLAIN_VARIABLE):
        pytest.skip("another CPU is asked for")
    shown = set(Path("/proc/cpuinfo").read_text().split())
    # Our spelling, which is LLVM's, and the kernel's.
    names = {"x86": {"avx2": "avx2", "f16c": "f16c"}, "arm64": {"dotprod": "asimddp"}}
    for name, flag in names[target._machine()].items():
        assert target.has(name) == (flag in shown), name
