"""Agent processes on this machine (`--local N`): start them, notice their end, end them.

Each agent inherits the reading end of a pipe whose writing end only this process holds. When
this process ends, however it ends, the pipe closes and every agent leaves: no orphans.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from agent.curve import new_key_pair
from agent.ids import AgentName
from agent.join_file import JoinInfo, encode_join_info
from agent.resources import usable_cores
from coordinator.gate import Gate
from kernels.errors import ResourceError

__all__ = ["MAX_LOCAL_AGENTS", "LocalAgents", "local_names"]

MAX_LOCAL_AGENTS = 64
STOP_S = 3.0


def local_names(n_agents: int) -> list[AgentName]:
    """Return the names of the agents that `--local N` starts."""
    return [AgentName(f"local-{i + 1}") for i in range(n_agents)]


def _filled_pipe(data: bytes) -> int:
    """Return the reading end of a pipe that holds a page of data at most, and then ends."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, data)
    os.close(write_fd)
    return read_fd


class LocalAgents:
    """N agent processes that dial the coordinator over loopback.

    Args:
        n_agents: how many, 1 to MAX_LOCAL_AGENTS.
        control_port: the coordinator's control port.
        model_dir: the model directory, which they map instead of pulling its atoms.
        verbose: let them log at INFO level.
        pin: let each keep its hot thread on a core of its own.
        gate: lets them in with throw-away keys, handed over by pipes; None: links in clear.

    Attributes:
        n_threads: kernel threads of each agent, the cores shared out.
    """

    def __init__(
        self,
        n_agents: int,
        control_port: int,
        model_dir: Path,
        verbose: bool = False,
        pin: bool = False,
        gate: Gate | None = None,
    ) -> None:
        self.n_threads = max(1, usable_cores() // n_agents)
        self._verbose = verbose
        self._pin = pin
        self._gate = gate
        self._model_dir = model_dir.resolve()
        self._coordinator = f"tcp://127.0.0.1:{control_port}"
        self._read_fd, self._write_fd = os.pipe()
        self._processes: dict[AgentName, subprocess.Popen[bytes]] = {}
        self._logs: dict[AgentName, IO[bytes]] = {}
        try:
            for name in local_names(n_agents):
                self._start(name)
        except OSError as e:
            self.close()
            raise ResourceError(f"cannot start {n_agents} agent processes: {e}") from e

    def _start(self, name: AgentName) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        command = [
            sys.executable, "-m", "agent", "--coordinator", self._coordinator, "--name", name,
            "--threads", str(self.n_threads), "--model-dir", str(self._model_dir),
            "--leave-with-fd", str(self._read_fd),
        ]  # fmt: skip
        fds = [self._read_fd]
        if self._gate is not None:
            # Neither arguments nor environment are secret, and a file would have to be removed.
            fds.append(_filled_pipe(self._let_in(name, self._gate)))
            command += ["--join-fd", str(fds[-1])]
        command += ["-v"] * self._verbose + ["--pin"] * self._pin
        self._logs[name] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close())
        try:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if self._verbose else self._logs[name],
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=fds,
                # Ctrl-C at the terminal is for the coordinator, which then ends its agents.
                start_new_session=True,
            )
        finally:
            for fd in fds[1:]:
                os.close(fd)

    def _let_in(self, name: AgentName, gate: Gate) -> bytes:
        """Make a key pair for an agent, let it in, and return its join file."""
        pair, server_key = new_key_pair(), gate.curve.own.public
        gate.add(name, pair.public)
        info = JoinInfo(name, self._coordinator, server_key, pair.public, pair.secret)
        return encode_join_info(info)

    @property
    def pids(self) -> dict[AgentName, int]:
        """Process id of each agent."""
        return {name: p.pid for name, p in self._processes.items()}

    def exit_reason(self, name: AgentName) -> str:
        """Return why an agent's process has ended, with the end of its log, or ""."""
        process = self._processes.get(name)
        if process is None or process.poll() is None:
            return ""
        code = process.returncode
        try:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        except ValueError:
            how = f"killed by signal {-code}"
        return f"its process ended ({how}){self._log_tail(name)}"

    def is_stopped(self, name: AgentName) -> bool:
        """Tell whether an agent's process is stopped (SIGSTOP), rather than late."""
        process = self._processes.get(name)
        if process is None:
            return False
        try:
            # Looked at, not taken: whoever waits for the process's end still hears of it.
            how = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, process.pid, how) is not None
        except ChildProcessError:
            return False  # it has ended

    def _log_tail(self, name: AgentName) -> str:
        log = self._logs[name]
        log.seek(0)
        lines = log.read()[-2000:].decode(errors="replace").strip().splitlines()
        return ": " + " | ".join(lines[-2:]) if lines else ""

    def close(self) -> None:
        """End all agents: politely first, by force after STOP_S seconds."""
        if self._write_fd < 0:
            return
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
                # A stopped process takes SIGTERM only when it goes on.
                process.send_signal(signal.SIGCONT)
        deadline_s = time.monotonic() + STOP_S
        for process in self._processes.values():
            try:
                process.wait(max(0.01, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # Only now: a closed pipe ends an agent on the spot.
        os.close(self._write_fd)
        os.close(self._read_fd)
        self._write_fd = -1
        for log in self._logs.values():
            log.close()
