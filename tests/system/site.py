"""A coordinator that stays, its agents, and whoever talks to it: real processes on loopback."""

import signal
from collections.abc import Callable
from pathlib import Path

from coordinator.admin_client import AdminClient
from coordinator.admin_messages import Finished, Generate, GetStatus, LivePlan, Question, Status
from coordinator.admin_path import connect
from kernels.errors import RemoteError
from tests.system.processes import AGENT, Command, free_port, wait_until

__all__ = ["Site"]

READY_S = 30.0


class Site:
    """`headwise serve` in a runtime directory of its own, and agents by name.

    Attributes:
        agents: those that run, or have ended by themselves.
    """

    def __init__(
        self,
        runtime: Path,
        model: Path,
        *options: str,
        port: int | None = None,
        links: tuple[str, ...] = ("--insecure",),
    ) -> None:
        self.model = model
        self.port = port or free_port()
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.env = {"XDG_RUNTIME_DIR": str(runtime)}
        self.path = runtime / "headwise" / f"{self.port}.sock"
        self.agents: dict[str, Command] = {}
        self._options = (*options, *links)
        self.serve = self.start()

    def start(self) -> Command:
        """Start a coordinator; wait until clients can talk to it."""
        self.serve = self.command(
            "serve", "-m", self.model, "--port", str(self.port), *self._options
        )
        self.serve.until("stderr", "listening")
        return self.serve

    def command(self, *words: str | Path) -> Command:
        return Command(*words, env=self.env)

    def add(self, *names: str) -> None:
        """Start agents, in place of what had these names before."""
        for name in names:
            self.add_by(name, "--coordinator", self.endpoint, "--name", name)

    def add_by(self, name: str, *words: str | Path) -> None:
        """Start an agent that these words tell where to dial."""
        if name in self.agents:
            self.agents[name].close()
        words = (*words, "--threads", "1", "--model-dir", self.model)
        self.agents[name] = Command(*words, program=AGENT)

    def client(self) -> AdminClient:
        return AdminClient(connect(self.path), self.port)

    def status(self) -> Status:
        status = self._ask(GetStatus())
        assert isinstance(status, Status)
        return status

    def until(self, found: Callable[[Status], bool]) -> None:
        """Wait until the status is as wanted."""
        assert wait_until(lambda: found(self.status()), READY_S), self.status()

    def until_ready(self, *names: str) -> None:
        """Wait until these agents, and no others, hold the plan in force."""
        self.until(
            lambda status: (
                status.state in ("ready", "writing")
                and {a.name for a in status.agents if a.state == "ready"} == set(names)
            )
        )

    def ids(self, n_tokens: int, prompt_ids: tuple[int, ...] = (5, 6, 7)) -> list[int]:
        """Return the tokens of a text."""
        ask = Generate(prompt_ids=list(prompt_ids), max_tokens=n_tokens)
        with self.client() as client:
            for reply in client.ask(ask):
                if isinstance(reply, Finished):
                    return reply.result.token_ids
        raise RemoteError("the coordinator has gone")

    def close(self) -> None:
        for agent in self.agents.values():
            agent.close()
        self.serve.close()

    def kill(self) -> None:
        """End the coordinator without giving it a chance to clean up."""
        self.serve.signal(signal.SIGKILL)
        self.serve.wait()
        self.serve.close()

    def _ask(self, question: Question) -> Status | LivePlan:
        with self.client() as client:
            reply = client.answer(question)
        assert isinstance(reply, Status | LivePlan)
        return reply
