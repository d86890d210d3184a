"""Signals and losses while a long-lived coordinator moves a text to a board that does not answer.

The newcomer is frozen as soon as it is here: the move to it stays in flight until it is missed.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.processes import Command
from tests.system.site import Site

ENDLESS = ["--prompt-ids", "5,6,7", "-n", "8000"]

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path: Path, endless: Path) -> Iterator[Site]:
    site = Site(tmp_path, endless, "-c", "8192", "--place", "spread", "--exact")
    site.add("pi-1", "pi-2")
    site.until_ready("pi-1", "pi-2")
    yield site
    site.close()


def freeze_newcomer(site: Site, client: Command) -> None:
    """Have a text written, and a move under way to an agent that does not answer."""
    client.until("stdout", r"(\d+ ){5}")
    site.add("pi-3")
    site.until(lambda status: "pi-3" in {agent.name for agent in status.agents})
    site.agents["pi-3"].signal(signal.SIGSTOP)
    site.until(lambda status: status.move is not None)


def test_a_signal_during_a_move_ends_all_in_good_order(site: Site) -> None:
    with site.command("run", *ENDLESS) as client:
        freeze_newcomer(site, client)
        site.serve.signal(signal.SIGTERM)
        assert client.wait() == 1
        assert client.stderr.splitlines()[-1].startswith("error: the coordinator has been stopped")
    assert site.serve.wait() == 0
    assert "Traceback" not in site.serve.stderr


def test_a_client_that_leaves_during_a_move_leaves_nothing_behind(site: Site) -> None:
    wanted = site.ids(200)
    with site.command("run", *ENDLESS) as client:
        freeze_newcomer(site, client)
        client.signal(signal.SIGINT)
        assert client.wait() == 130
    # Served beside the move, and then without it.
    assert site.ids(200) == wanted
    site.until(lambda status: status.move is None)
    assert site.ids(200) == wanted
    site.agents["pi-3"].signal(signal.SIGCONT)
    site.until_ready("pi-1", "pi-2", "pi-3")
    assert site.ids(200) == wanted
    assert "Traceback" not in site.serve.stderr


def test_a_member_that_is_killed_during_a_move_is_done_without(site: Site) -> None:
    wanted = site.ids(400)
    with site.command("run", *ENDLESS) as client:
        freeze_newcomer(site, client)
        site.agents["pi-2"].signal(signal.SIGKILL)
        client.until("stdout", r"(\d+ ){400}")
        assert [int(word) for word in client.stdout.split()[:400]] == wanted
        site.until(lambda status: {a.name for a in status.agents if a.state == "ready"} == {"pi-1"})
        site.add("pi-2")
        site.agents["pi-3"].signal(signal.SIGCONT)
        site.until_ready("pi-1", "pi-2", "pi-3")
        n_words = len(client.stdout.split())
        client.until("stdout", rf"(\d+ ){{{n_words + 20}}}")
        client.signal(signal.SIGINT)
        assert client.wait() == 130
    assert site.ids(400) == wanted
    assert "Traceback" not in site.serve.stderr
