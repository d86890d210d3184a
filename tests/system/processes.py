"""Commands as real processes: read while they run, waited for with deadlines, never left behind."""

import fcntl
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import psutil

__all__ = ["AGENT", "HEADWISE", "Command", "Words", "free_port", "wait_until"]

Words = list[str | Path]

ROOT = Path(__file__).resolve().parents[2]
HEADWISE = (sys.executable, "-m", "tools.cli")
AGENT = (sys.executable, "-m", "agent")
DEADLINE_S = 60.0
_RANDOM = random.SystemRandom()
_LOCKS = Path(tempfile.gettempdir()) / f"headwise-test-ports.{os.getuid()}"
_MAX_PORTS = 4


def free_port(n_ports: int = 3) -> int:
    """Return the first of n_ports free ports in a row, as `--bind` needs them.

    They lie below those that the system lends to outgoing connections: an agent that dials before
    anybody listens is lent such a port, sometimes the very one that it dials. No other test gets
    them as long as this process lives: coordinators come and go, and their agents keep dialling.
    """
    assert n_ports <= _MAX_PORTS
    words = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    lowest, highest = 10_000, min(int(words[0]), 32_768) - _MAX_PORTS
    _LOCKS.mkdir(exist_ok=True)
    while True:
        port = _RANDOM.randrange(lowest, highest, _MAX_PORTS)
        lock = os.open(_LOCKS / str(port), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for i in range(n_ports):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + i))
        except OSError:
            os.close(lock)
            continue
        return port


def wait_until(found: Callable[[], bool], within_s: float = DEADLINE_S) -> bool:
    """Wait for something that nothing announces; False when it is not so within the time."""
    nothing = threading.Condition()
    with nothing:
        # Between two looks the thread waits for a notification that never comes.
        deadline_s = time.monotonic() + within_s
        while not found():
            if time.monotonic() > deadline_s:
                return False
            nothing.wait(0.02)
    return True


class Command:
    """One running command, `headwise` unless `program` says otherwise.

    Attributes:
        popen: the process, in a session of its own.
    """

    def __init__(
        self,
        *words: str | Path,
        program: Sequence[str] = HEADWISE,
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
    ) -> None:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.popen = subprocess.Popen(
            [*program, *map(str, words)],
            cwd=cwd,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(p for p in paths if p),
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._changed = threading.Condition()
        self._texts = {"stdout": bytearray(), "stderr": bytearray()}
        self._readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._texts
        ]
        self._family: dict[psutil.Process, int] = {}
        for reader in self._readers:
            reader.start()

    @property
    def stdout(self) -> str:
        return self._texts["stdout"].decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self._texts["stderr"].decode(errors="replace")

    def until(self, stream: str, pattern: str, within_s: float = DEADLINE_S) -> re.Match[str]:
        """Wait until a stream holds what the pattern says, while the process runs."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self._texts[stream].decode(errors="replace"))

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reading(), within_s)
            match = found()
        assert match, f"{pattern!r} is not in {stream}: {self.stdout!r} {self.stderr!r}"
        return match

    def wait(self, within_s: float = DEADLINE_S) -> int:
        """Wait for the end and return the exit code."""
        code = self.popen.wait(within_s)
        for reader in self._readers:
            reader.join(within_s)
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone, not to its children."""
        self.popen.send_signal(number)

    def agents(self) -> dict[str, psutil.Process]:
        """Return the agents that this coordinator has started, by name."""
        found = {}
        for child in psutil.Process(self.popen.pid).children():
            words = child.cmdline()
            if "--name" in words:
                if child not in self._family:
                    self._family[child] = os.pidfd_open(child.pid)
                found[words[words.index("--name") + 1]] = child
        return found

    def leftovers(self, within_s: float = 0.0) -> list[psutil.Process]:
        """Return which of the agents seen by `agents` still run after the time."""
        poller = select.poll()
        running = {fd: process for process, fd in self._family.items()}
        for fd in running:
            poller.register(fd, select.POLLIN)
        deadline_s = time.monotonic() + within_s
        while running:
            # An ended process is readable, even while its new parent has not reaped it.
            ended = poller.poll(1000 * max(0.0, deadline_s - time.monotonic()))
            for fd, _ in ended:
                poller.unregister(fd)
                del running[fd]
            if not ended:
                break
        return list(running.values())

    def close(self) -> None:
        """Kill the process and the agents that were seen."""
        if self.popen.poll() is None:
            self.agents()
            self.popen.kill()
        self.popen.wait()
        for orphan in self.leftovers():
            orphan.kill()
        for fd in self._family.values():
            os.close(fd)
        self._family.clear()
        for reader, pipe in zip(self._readers, (self.popen.stdout, self.popen.stderr), strict=True):
            reader.join(DEADLINE_S)
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> "Command":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _reading(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)

    def _read(self, name: str) -> None:
        pipe = getattr(self.popen, name)
        while data := os.read(pipe.fileno(), 65536):
            with self._changed:
                self._texts[name] += data
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()
