"""What a cluster measures of its boards while it writes; boards are emulated, processes real."""

from collections.abc import Iterator

import pytest

from agent.emulation import FILE_VARIABLE
from coordinator.status import AgentStatus
from tests.system.conftest import random_model
from tests.system.processes import AGENT, Command
from tests.system.site import Site

pytestmark = pytest.mark.slow

RATE = 4e7
SLOWED = 1e7


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("measuring")
    # Large enough that a played board's time is reading, at any load of this machine.
    model = random_model(root, "wide", hidden_size=256, intermediate_size=1024, num_hidden_layers=2)
    site = Site(root, model, "--place", "spread", "--min-agents", "2")
    for name in ("fast", "slow"):
        words = ("--coordinator", site.endpoint, "--name", name, "--threads", "1", "--model-dir")
        played = ("--emulate-bytes-per-s", f"{RATE:g}", "--emulate-memory", "64M")
        env = {FILE_VARIABLE: str(root / name)}
        site.agents[name] = Command(*words, model, *played, program=AGENT, env=env)
    site.until_ready("fast", "slow")
    yield site
    site.close()


def board(site: Site, name: str) -> AgentStatus:
    return next(agent for agent in site.status().agents if agent.name == name)


def test_boards_are_as_slow_as_they_play_and_say_so(site: Site) -> None:
    before = board(site, "slow")
    assert (before.is_measured, before.bytes_per_s) == (False, RATE)
    assert before.memory_offered_bytes == 64 << 20
    assert len(site.ids(150)) == 150
    site.until(lambda status: all(a.is_measured for a in status.agents))
    for name in ("fast", "slow"):
        found = board(site, name)
        # Never faster than what they play; slower only where this machine was busy.
        assert RATE / 2 < found.bytes_per_s < 1.03 * RATE, found
        assert found.memory_free_bytes is not None
        assert found.memory_free_bytes < 64 << 20
        assert found.exchange_s is not None
        assert 0.0 < found.exchange_s < 0.1
        assert found.kv_used_bytes >= 0
    with site.command("status", "--port", str(site.port)) as table:
        assert table.wait() == 0
        assert "GB/s" in table.stdout


def test_a_board_that_slows_down_while_it_works_is_noticed(site: Site) -> None:
    file = site.path.parent.parent / "slow"
    file.write_text(f"{SLOWED:g}\n")

    def slowed() -> bool:
        site.ids(40)
        return board(site, "slow").bytes_per_s < 1.03 * SLOWED

    assert any(slowed() for _ in range(20)), board(site, "slow")
    assert board(site, "fast").bytes_per_s > 2 * SLOWED
