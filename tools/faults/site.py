"""A coordinator as a real process, its boards, and whoever asks it."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from agent.ids import AgentName
from coordinator.admin_client import AdminClient
from coordinator.admin_messages import (
    Drain,
    Finished,
    Generate,
    GetPlan,
    GetStatus,
    LivePlan,
    Piece,
)
from coordinator.admin_path import connect
from coordinator.plan import Plan
from coordinator.status import Status
from kernels.errors import RemoteError
from tools.faults.asking import Wish
from tools.faults.board import Board
from tools.faults.cables import Cables
from tools.faults.process import MARK, Process, marked_pids, wait_until
from tools.faults.verdict import Holding

__all__ = ["Site", "is_moving"]

START_S = 120.0
# What the coordinator logs of an agent that is ready.
PULLED = re.compile(rb" ready epoch=\d+ weights_bytes=\d+ pulled_bytes=(\d+) ")
KILL_S = 5.0


def is_moving(status: Status) -> bool:
    """Return whether weights or heads are on their way, for the plan in force or the next one.

    While a text is written an agent loads only because the placement is changing under it.
    """
    return (
        status.state in ("loading", "moving")
        or any(agent.state == "loading" for agent in status.agents)
        or status.move is not None
    )


class Site:
    """`headwise serve` and its boards; close it, whatever happens.

    Args:
        model: model directory.
        cables: closed with this.
        serve_options: of `headwise serve`.
        agent_options: of each `headwise agent`.
        bytes_per_s: what the boards play; None for this machine as it is.
        root: for logs, sockets and caches; of a short path.
        mark: a text that no other run has.
        module: with the command line of the coordinator.

    Attributes:
        boards: by name.
        path: of the coordinator's admin socket.
    """

    def __init__(
        self,
        model: Path,
        cables: Cables,
        serve_options: tuple[str, ...],
        agent_options: tuple[str | Path, ...],
        bytes_per_s: float | None,
        root: Path,
        mark: str,
        module: str = "tools.cli",
    ) -> None:
        self._cables, self._root, self._mark = cables, root, mark
        self._agent_options, self._rate = agent_options, bytes_per_s
        self.boards: dict[str, Board] = {}
        self.path = root / "headwise" / f"{cables.port}.sock"
        env = {MARK: mark, "XDG_RUNTIME_DIR": str(root)}
        self._serve = Process(
            cables.serve_prefix(),
            (module, "serve", "-m", model, *cables.serve_words(), *serve_options),
            env,
            root / "serve.log",
        )

    def await_listening(self) -> None:
        """Wait until clients can talk to the coordinator.

        Raises:
            RemoteError: it does not come up.
        """
        self._serve.await_log("listening", START_S)

    def add(self, *names: str) -> None:
        """Start boards of these names."""
        for name in names:
            self.boards[name] = Board(
                name, self._cables, self._agent_options, self._rate, self._root, self._mark
            )

    def await_ready(self, *names: str, within_s: float = START_S) -> None:
        """Wait until these agents are ready and a plan is in force.

        Raises:
            RemoteError: it takes too long; says how the cluster is.
        """

        def ready() -> bool:
            status = self.status()
            here = {a.name for a in status.agents if a.state == "ready"}
            return status.state in ("ready", "writing") and here >= set(names)

        if not wait_until(ready, within_s):
            raise RemoteError(f"{', '.join(names)} are not ready in {within_s:g} s: {self.told()}")

    def told(self) -> str:
        """Return how the cluster is, in a line."""
        status = self.status()
        agents = ", ".join(f"{a.name} {a.state} {a.reason}".strip() for a in status.agents)
        return f"{status.state} epoch={status.epoch} {agents}; {status.problem}".strip("; ")

    def status(self) -> Status:
        """Return how the cluster is."""
        with self._client() as client:
            status = client.answer(GetStatus())
        assert isinstance(status, Status)
        return status

    def plan(self) -> Plan:
        """Return the plan in force.

        Raises:
            RemoteError: there is none.
        """
        with self._client() as client:
            found = client.answer(GetPlan())
        assert isinstance(found, LivePlan)
        return found.plan

    def pulled_bytes(self) -> int:
        """Return how many bytes of weights the boards have pulled so far, for all plans."""
        return sum(int(n) for n in PULLED.findall(self._serve.log.read_bytes()))

    def text(
        self, ask: Generate, on_token: Callable[[int], None] = lambda _: None
    ) -> list[tuple[int, float]]:
        """Return a text's tokens, each with the monotonic time at which it came.

        Args:
            ask: what is to be written.
            on_token: called after each token with how many there are by then.

        Raises:
            RemoteError: it was not written to its end.
        """
        found: list[tuple[int, float]] = []
        with self._client() as client:
            for reply in client.ask(ask):
                if isinstance(reply, Piece) and reply.id is not None:
                    found.append((reply.id, time.monotonic()))
                    on_token(len(found))
                if isinstance(reply, Finished):
                    return found
        raise RemoteError("the coordinator has gone while it was writing")

    def drain(self, name: str, on: bool = True) -> Wish:
        """Wish an agent free of work, or (`on` False) in use again; does not wait."""
        return Wish(self.path, Drain(AgentName(name), on))

    def holdings(self) -> dict[str, Holding]:
        """Return what the coordinator and each agent hold now."""
        found = {"coordinator": self._serve.holding()}
        return found | {name: board.process.holding() for name, board in self.boards.items()}

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the coordinator and of each agent."""
        found = {"coordinator": self._serve.pid}
        return found | {name: board.process.pid for name, board in self.boards.items()}

    @property
    def runs(self) -> bool:
        """Whether the coordinator has not ended."""
        return self._serve.runs

    def close(self) -> list[int]:
        """End everything; return the processes that outlived it, and end them too."""
        for board in self.boards.values():
            board.process.end()
        self._serve.end()
        self._cables.close()
        wait_until(lambda: not marked_pids(self._mark), KILL_S)
        left = marked_pids(self._mark)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left

    def _client(self) -> AdminClient:
        return AdminClient(connect(self.path), self._cables.port)
