"""Boards that run out of memory while a text is written; boards are emulated, processes real."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.emulation import FILE_VARIABLE
from coordinator.status import AgentStatus
from tests.system.processes import AGENT, Command
from tests.system.site import Site

pytestmark = pytest.mark.slow

ENDLESS = ["--prompt-ids", "5,6,7", "-n", "8000"]
# The model and its KV take 9 MiB; no reserve is kept on boards that are played.
PLENTY, LITTLE = "64M", "4M"
FAST = 1e12


class Boards:
    """Two agents, either of which can hold the model, and the memory that each one plays."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root = root
        self.site = Site(root, model, "--exact", "-c", "8192", "--min-agents", "2")
        for name in ("pi-1", "pi-2"):
            self.site.agents[name] = Command(
                "--coordinator", self.site.endpoint, "--name", name, "--threads", "1",
                "--model-dir", model, "--emulate-memory", PLENTY,
                program=AGENT, env={FILE_VARIABLE: str(root / name)},
            )  # fmt: skip

    def board(self, name: str) -> AgentStatus:
        return next(agent for agent in self.site.status().agents if agent.name == name)

    def holder(self) -> str:
        """Wait until a plan is in force and return who has all of it."""
        self.site.until(lambda status: status.epoch > 0)
        (holder,) = (a.name for a in self.site.status().agents if a.n_head_groups)
        return holder

    def set_memory(self, name: str, memory: str) -> None:
        (self.root / name).write_text(f"{FAST:g} {memory}\n")


@pytest.fixture
def boards(tmp_path: Path, endless: Path) -> Iterator[Boards]:
    boards = Boards(tmp_path, endless)
    yield boards
    boards.site.close()


def test_a_text_moves_off_a_board_whose_memory_shrinks_and_ends_if_none_has_enough(
    boards: Boards,
) -> None:
    site = boards.site
    first = boards.holder()
    second = "pi-1" if first == "pi-2" else "pi-2"
    wanted = site.ids(400)
    left = boards.board(first).memory_forecast_bytes
    assert left is not None
    assert 0 < left < (64 << 20) - boards.board(first).kv_bytes
    with site.command("run", *ENDLESS) as client:
        client.until("stdout", r"(\d+ ){5}")
        boards.set_memory(first, LITTLE)
        site.until(lambda _: boards.holder() == second)
        # Unless it had moved just before, for speed, and was about to move back.
        moved = r"replan epoch=\d+ reason=memory "
        stayed = r"move abandoned epoch=\d+: agent '\S+' runs out of memory"
        site.serve.until("stderr", f"{moved}|{stayed}")
        client.until("stdout", r"(\d+ ){400}")
        assert [int(word) for word in client.stdout.split()[:400]] == wanted
        boards.set_memory(second, LITTLE)
        assert client.wait() == 1
        last = client.stderr[client.stderr.rindex("error: ") :]
        assert re.match(
            rf"error: agent '{second}' runs out of memory: it holds \d+ bytes .* left, of a "
            rf"reserve of 0; without it: the model does not fit: ",
            last,
        )
        assert f"{first} offers 4.0 MiB" in last
    boards.set_memory(first, PLENTY)
    assert boards.holder() == first
    assert site.ids(400) == wanted
    # Nobody writes: the plan is simply another one.
    boards.set_memory(second, PLENTY)
    site.until(lambda _: boards.board(second).memory_forecast_bytes == 64 << 20)
    boards.set_memory(first, LITTLE)
    site.until(lambda status: any(a.name == second and a.n_head_groups for a in status.agents))
    assert site.ids(400) == wanted
