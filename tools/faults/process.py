"""One headwise process: its log in a file, found again by a mark in its environment."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kernels.errors import RemoteError
from tools.faults.verdict import Holding

__all__ = ["MARK", "Process", "marked_pids", "wait_until"]

ROOT = Path(__file__).resolve().parents[2]
# Every process of a run has this in its environment, and so have its children.
MARK = "HEADWISE_FAULTS_RUN"
END_S = 10.0
LOOK_S = 0.02


def wait_until(found: Callable[[], bool], within_s: float) -> bool:
    """Look every 20 ms; False when it is not so within the time."""
    deadline_s = time.monotonic() + within_s
    while not found():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(LOOK_S)
    return True


class Process:
    """A running `python -m MODULE WORDS`.

    Args:
        prefix: what starts it, such as `ip netns exec HOST`; must exec, not fork.
        words: module and arguments.
        env: added to ours.
        log: file that its output is appended to.

    Attributes:
        log: that file.
    """

    def __init__(
        self, prefix: Sequence[str], words: Sequence[str | Path], env: Mapping[str, str], log: Path
    ) -> None:
        self.log = log
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        with log.open("ab") as file:
            self._popen = subprocess.Popen(
                [*prefix, sys.executable, "-m", *map(str, words)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), **env},
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C is for us; we end them
            )
        self._children: dict[int, str] = {}

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def wait(self, within_s: float) -> int:
        """Wait for the end and return the exit code.

        Raises:
            RemoteError: it goes on; says what it logged last.
        """
        try:
            return self._popen.wait(within_s)
        except subprocess.TimeoutExpired as e:
            raise RemoteError(
                f"process {self.pid} has not ended within {within_s:g} s: {self.tail()}"
            ) from e

    def await_log(self, text: str, within_s: float) -> None:
        """Wait until its log holds a text.

        Raises:
            RemoteError: it ended, or the time is over; says what it logged last.
        """
        wanted = text.encode()
        found = wait_until(lambda: wanted in self.log.read_bytes() or not self.runs, within_s)
        if not found or not self.runs:
            raise RemoteError(f"no {text!r} in {self.log}: {self.tail()}")

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_bytes()[-400:].decode(errors="replace").strip()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended does not mind."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    def kill(self) -> None:
        """End it at once, frozen or not, and what it has started."""
        children = _children(self.pid) if self.runs else []
        if self.runs:
            self.signal(signal.SIGKILL)
        self._popen.wait()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """Ask it to end; kill it when it does not."""
        if self.runs:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(END_S)
        self.kill()

    def holding(self) -> Holding:
        """Return what it holds now.

        Raises:
            RemoteError: it has ended.
        """
        proc = Path(f"/proc/{self.pid}")
        try:
            lines = (proc / "status").read_text().splitlines()
            status = dict(line.split(":", 1) for line in lines if ":" in line)
            n_fds = len(os.listdir(proc / "fd"))
            memory_bytes = 1024 * int(status["RssAnon"].split()[0])
        except (OSError, KeyError) as e:
            raise RemoteError(f"process {self.pid} has ended: {self.tail()}") from e
        return Holding(n_fds, int(status["Threads"]), memory_bytes, len(_children(self.pid)))


def _children(pid: int) -> list[int]:
    """Return the processes that this one's threads have started and that still run."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def marked_pids(value: str) -> list[int]:
    """Return the processes of a run: those whose MARK has this value."""
    wanted = f"{MARK}={value}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return sorted(found)
