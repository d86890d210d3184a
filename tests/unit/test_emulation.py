"""A board that is played: how long calls last, by a clock of the test's own."""

import math
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.emulation import FILE_VARIABLE, LOOK_NS, MAX_DEBT_NS, Emulation, Pace, parse_rate
from kernels.errors import InputError


class Clock:
    """Time that passes only while somebody sleeps; sleeps are a little too long."""

    def __init__(self, late_ns: int = 0) -> None:
        self.now_ns = 10**9
        self.late_ns = late_ns
        self.sleeps: list[float] = []

    def read_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_ns += math.ceil(1e9 * seconds) + self.late_ns


def pace(clock: Clock, rate: float | None, path: Path | None = None) -> Pace:
    return Pace(Emulation(rate, None, path), clock.read_ns, clock.sleep)


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=50), st.floats(1e6, 1e11),
       st.integers(0, 80_000), st.integers(0, 50_000))  # fmt: skip
def test_calls_last_as_long_as_the_boards(
    sizes: list[int], rate: float, late_ns: int, kernel_ns: int
):
    clock = Clock(late_ns)
    board = pace(clock, rate)
    began_ns, board_ns = clock.now_ns, 0
    for n_bytes in sizes:
        started_ns = clock.now_ns
        clock.now_ns += kernel_ns
        board.wait(n_bytes, started_ns)
        board_ns += int(1e9 * n_bytes / rate)
    # Faster only by what a call before was late, and slower only by what the last one is.
    took_ns = clock.now_ns - began_ns
    assert took_ns >= board_ns - MAX_DEBT_NS - len(sizes)
    if kernel_ns == 0 and min(sizes) >= rate * 1e-9 * 2 * late_ns:
        # Rounding up a sleep costs a nanosecond.
        assert took_ns <= board_ns + late_ns + 2 * len(clock.sleeps)


def test_late_sleeps_are_made_up_for():
    clock = Clock(late_ns=60_000)
    board, began_ns = pace(clock, 1e9), clock.now_ns
    for _ in range(1000):
        board.wait(500_000, clock.now_ns)
    assert clock.now_ns - began_ns == pytest.approx(1000 * 500_000, rel=1e-3)
    assert len(clock.sleeps) == 1000


def test_a_call_that_took_its_time_does_not_wait():
    clock = Clock()
    board = pace(clock, 1e9)
    board.wait(1000, clock.now_ns - 5000)
    assert not clock.sleeps
    # A machine that was suspended for an hour does not run free afterwards.
    board.wait(1000, clock.now_ns - 3600 * 10**9)
    board.wait(10_000_000, clock.now_ns)
    assert sum(clock.sleeps) == pytest.approx(0.01 - 1e-9 * MAX_DEBT_NS)


def test_without_a_rate_nothing_waits():
    clock = Clock()
    pace(clock, None).wait(1 << 40, clock.now_ns)
    assert not clock.sleeps


def test_a_loop_that_ends_does_not_wait_for_a_slow_board():
    clock = Clock()
    board = pace(clock, 1.0)

    def stop(seconds: float) -> None:
        assert seconds <= 0.1
        board.ended = True

    board._sleep = stop
    board.wait(10**6, clock.now_ns)


def test_the_file_changes_the_board_while_it_works(tmp_path: Path):
    path, clock = tmp_path / "board", Clock()
    board = pace(clock, 1e9, path)

    def wait_ns(n_bytes: int) -> int:
        started_ns = clock.now_ns
        board.wait(n_bytes, started_ns)
        return clock.now_ns - started_ns

    assert wait_ns(10**6) == 10**6
    path.write_text("3e8\n")
    # Looked at ten times a second, not in every call.
    assert wait_ns(3 * 10**5) == 3 * 10**5
    clock.now_ns += LOOK_NS
    assert wait_ns(3 * 10**5) == 10**6
    for nonsense in ("", "fast", "-1", "nan", "1e16", "\0" * 500):
        path.write_text(nonsense)
        clock.now_ns += LOOK_NS
        assert wait_ns(3 * 10**5) == 10**6
    path.unlink()
    path.write_text("2e9 512M")
    clock.now_ns += LOOK_NS
    assert wait_ns(2 * 10**6) == 10**6
    assert board._emulation.memory_bytes == 512 << 20


def test_memory_left_is_that_of_the_board():
    board = Emulation(None, 1000)
    assert board.memory_left_bytes(10_000, 300) == 700
    assert board.memory_left_bytes(500, 300) == 500
    assert board.memory_left_bytes(10_000, 3000) == 0
    assert Emulation(1e9, None).memory_left_bytes(10_000, 300) == 10_000


def test_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    assert Emulation.of_options(None, None, 1000) is None
    with pytest.raises(InputError, match="this machine has 1000"):
        Emulation.of_options(None, 1001, 1000)
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "board"))
    assert Emulation.of_options(None, None, 1000) is not None
    assert parse_rate("2e9") == 2e9
    for wrong in ("", "0", "-1", "nan", "inf", "fast", "1e16"):
        with pytest.raises(ArgumentTypeError):
            parse_rate(wrong)
