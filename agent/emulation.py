"""Makes a fast machine behave like a board: as slow with weights, and with as little memory.

Each kernel call lasts at least as long as a board of so many bytes per second takes for the bytes
that the call reads. Waiting is sleeping, never spinning: several emulated boards share a machine.
How much a sleep was too long is taken off the next ones, so that sums are exact.

For tests that slow a board down while it runs, a file named by HEADWISE_EMULATE_FILE is looked at
ten times a second: bytes per second, then the memory if that is to change too, such as `3e8` or
`3e8 512M`. As long as there is none, or it cannot be read, nothing changes.
"""

import contextlib
import ctypes
import logging
import math
import os
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from agent.shell import parse_size_bytes
from kernels.errors import InputError

__all__ = ["FILE_VARIABLE", "Emulation", "Pace", "parse_rate", "precise_sleeps"]

log = logging.getLogger(__name__)

FILE_VARIABLE = "HEADWISE_EMULATE_FILE"
MAX_BYTES_PER_S = 1e15
MAX_FILE_BYTES = 256
LOOK_NS = 100_000_000
# A machine that was suspended owes nothing.
MAX_DEBT_NS = 1_000_000
# How soon a wait notices that its loop shall end.
SLICE_S = 0.1
_PR_SET_TIMERSLACK = 29


def parse_rate(text: str) -> float:
    """Return bytes per second, for argparse; `2e9` is 2 GB/s."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    # Written so that NaN fails.
    if not 1.0 <= rate <= MAX_BYTES_PER_S:
        raise ArgumentTypeError(f"{text!r} is no rate in bytes per second, such as 2e9")
    return rate


class Emulation:
    """Which board this machine plays; read by several threads, changed by the file.

    Args:
        bytes_per_s: how fast that board's kernels read; None as fast as they are.
        memory_bytes: what it offers; None what this machine has.
        path: the file that changes both; None for none.

    Attributes:
        bytes_per_s: as it is now.
        memory_bytes: likewise.
    """

    def __init__(
        self, bytes_per_s: float | None, memory_bytes: int | None, path: Path | None = None
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self.memory_bytes = memory_bytes
        self._path = path
        self._text = ""

    @classmethod
    def of_options(
        cls, bytes_per_s: float | None, memory_bytes: int | None, available_bytes: int
    ) -> "Emulation | None":
        """Return what the options of an agent ask for; None for a board that is what it is.

        Raises:
            InputError: more memory than this machine has.
        """
        path = os.environ.get(FILE_VARIABLE, "")
        if memory_bytes is not None and memory_bytes > available_bytes:
            raise InputError(
                f"--emulate-memory {memory_bytes} bytes; this machine has {available_bytes} left"
            )
        if bytes_per_s is None and memory_bytes is None and not path:
            return None
        return cls(bytes_per_s, memory_bytes, Path(path) if path else None)

    def look(self) -> None:
        """Take what the file says now."""
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                text = file.read(MAX_FILE_BYTES).decode(errors="replace").strip()
        except OSError:
            return
        if text == self._text:
            return
        self._text = text
        if not text:
            return  # just being written
        rate, *memory = text.split()
        try:
            self.bytes_per_s = parse_rate(rate)
            self.memory_bytes = parse_size_bytes(memory[0]) if memory else self.memory_bytes
        except ArgumentTypeError as e:
            log.warning("%s says nothing that can be done: %s", self._path, e)
        else:
            log.info("emulating bytes_per_s=%.3g memory_bytes=%s", self.bytes_per_s,
                     self.memory_bytes)  # fmt: skip

    def memory_left_bytes(self, available_bytes: int, held_bytes: int) -> int:
        """Return what such a board would have left.

        Args:
            available_bytes: what this machine has left.
            held_bytes: what this process holds of weights and KV.
        """
        if self.memory_bytes is None:
            return available_bytes
        return max(0, min(available_bytes, self.memory_bytes - held_bytes))

    def budget_bytes(self, budget_bytes: int, reserve_bytes: int) -> tuple[int, int]:
        """Return budget and reserve of such a board; it needs no reserve.

        Args:
            budget_bytes: of this machine.
            reserve_bytes: likewise.
        """
        if self.memory_bytes is None:
            return budget_bytes, reserve_bytes
        return min(self.memory_bytes, budget_bytes), 0


class Pace:
    """Keeps the kernel calls of one thread as slow as an emulated board.

    Args:
        emulation: which one.
        clock_ns: monotonic time in nanoseconds.
        sleep: waits for so many seconds, or a little longer.

    Attributes:
        ended: set it to have a wait end soon.
    """

    def __init__(
        self,
        emulation: Emulation,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._emulation = emulation
        self._clock_ns = clock_ns
        self._sleep = sleep
        self._looked_ns: int | None = None
        self._debt_ns = 0
        self.ended = False

    def wait(self, n_bytes: int, started_ns: int) -> None:
        """Return when a board that began to read n_bytes at `started_ns` would be done."""
        now_ns = self._clock_ns()
        if self._looked_ns is None or now_ns - self._looked_ns >= LOOK_NS:
            self._looked_ns = now_ns
            self._emulation.look()
        rate = self._emulation.bytes_per_s
        if rate is None:
            return
        due_ns = started_ns + int(1e9 * n_bytes / rate) - self._debt_ns
        while not self.ended and now_ns < due_ns:
            self._sleep(min(1e-9 * (due_ns - now_ns), SLICE_S))
            now_ns = self._clock_ns()
        # Kernels that are slower than the board, too, are made up for.
        self._debt_ns = min(max(now_ns - due_ns, 0), MAX_DEBT_NS)


def precise_sleeps() -> None:
    """Have this thread's sleeps end within microseconds instead of the usual 50."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
