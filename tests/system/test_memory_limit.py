"""A board under a real memory limit, whose other processes take more and more of it."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from coordinator.status import AgentStatus
from tests.system.conftest import random_model
from tests.system.processes import AGENT, Command
from tests.system.site import Site
from tools.faults.ballast import Ballast
from tools.faults.cgroups import MemoryGroup, no_group

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(no_group("memory")), reason=no_group("memory")),
]

MIB = 1 << 20
LIMIT_BYTES = 384 * MIB
N_TOKENS = 1200
# Slow enough that a text lasts longer than it takes to fill a board.
RATES = {"tight": 2e9, "roomy": 1e9}


class Limited:
    """Two boards that share a model with much KV; `tight` is in a cgroup with a limit."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        # 64 KiB of keys and values a token.
        model = random_model(
            root, "much-kv", num_hidden_layers=16, head_dim=128, max_position_embeddings=2048
        )
        self.group = MemoryGroup(LIMIT_BYTES)
        stack.callback(self.group.close)
        self.site = Site(root, model, "--exact", "-c", "2048", "--min-agents", "2")
        stack.callback(self.site.close)
        for name, rate in RATES.items():
            program = self.group.enter(AGENT) if name == "tight" else AGENT
            self.site.agents[name] = Command(
                "--coordinator", self.site.endpoint, "--name", name, "--threads", "1",
                "--model-dir", model, "--emulate-bytes-per-s", f"{rate:g}", program=program,
            )  # fmt: skip
        self.site.until(lambda status: status.epoch > 0)
        self.ballast = Ballast(self.group)
        stack.callback(self.ballast.close)

    def tight(self) -> AgentStatus:
        return next(agent for agent in self.site.status().agents if agent.name == "tight")

    def left_bytes(self) -> int:
        left = self.tight().memory_forecast_bytes
        assert left is not None
        return left


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Limited]:
    with ExitStack() as stack:
        yield Limited(tmp_path, stack)


def test_a_text_leaves_a_board_before_its_limit_is_reached(limited: Limited) -> None:
    site, ballast = limited.site, limited.ballast
    wanted = site.ids(N_TOKENS)
    before, left_bytes = limited.tight(), limited.left_bytes()
    step_bytes = left_bytes
    assert before.kv_bytes > 60 * MIB
    assert left_bytes < LIMIT_BYTES - before.kv_bytes
    with site.command("run", "--prompt-ids", "5,6,7", "-n", str(N_TOKENS)) as client:
        client.until("stdout", r"(\d+ ){50}")
        # More than would be left if nothing changed.
        while ballast.n_bytes < left_bytes + 16 * MIB:
            now_bytes = limited.left_bytes()
            # Little by little in the end, also when a new plan seems to leave room.
            step_bytes = min(step_bytes, max(4 * MIB, (now_bytes - 80 * MIB) // 3))
            ballast.grow(step_bytes)
            # Nothing is taken faster than heartbeats tell of it.
            site.until(lambda _, b=now_bytes: limited.left_bytes() != b)
        assert client.wait() == 0
        assert [int(word) for word in client.stdout.split()] == wanted
    assert limited.group.n_oom_kills == 0
    assert limited.tight().kv_bytes < before.kv_bytes
    assert limited.left_bytes() > 0
    moved = re.search(r"replan epoch=\d+ reason=memory .*\n", site.serve.stderr)
    assert moved, site.serve.stderr
