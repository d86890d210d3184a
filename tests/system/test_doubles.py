"""What there may be one of only, twice: coordinators with one key store, boards with one key."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.processes import Command, free_port, wait_until
from tests.system.site import Site
from tools.cli import main

pytestmark = pytest.mark.slow

OPTIONS = ("-c", "8192", "--place", "spread", "--min-agents", "1")
TAKEN = "another live agent is named 'pi-1'"


class Keyed(Site):
    """A coordinator with keys, and join files for `pi-1` and `pi-2`."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.keys = root, str(root / "keys")
        port = free_port()
        assert main(["keys", "init", "--keys", self.keys]) == 0
        for name in ("pi-1", "pi-2"):
            words = ["--keys", self.keys, "--address", f"tcp://127.0.0.1:{port}"]
            assert main(["keys", "add", name, *words, "-o", str(self.join_file(name))]) == 0
        super().__init__(root, model, *OPTIONS, port=port, links=("--keys", self.keys))

    def join_file(self, name: str) -> Path:
        return self.root / f"{name}.join"

    def join(self, *names: str) -> None:
        for name in names:
            self.add_by(name, "--join", self.join_file(name))
        self.until_ready(*names)

    def second(self) -> Site:
        """Start another coordinator with the same keys, on ports of its own."""
        return Site(self.root, self.model, *OPTIONS, links=("--keys", self.keys))

    def fails_to_serve(self, runtime: Path) -> str:
        """Start another coordinator with the same keys on the same ports; return what it says."""
        words = ("serve", "-m", self.model, "--port", str(self.port), "--keys", self.keys)
        env = {"XDG_RUNTIME_DIR": str(runtime)}
        with Command(*words, env=env) as other:
            assert other.wait(20.0) == 1
            assert "Traceback" not in other.stderr
            return other.stderr


@pytest.fixture
def site(tmp_path: Path, endless: Path) -> Iterator[Keyed]:
    site = Keyed(tmp_path, endless)
    yield site
    site.close()


def test_two_coordinators_with_one_key_store_on_the_same_ports(site: Keyed, tmp_path: Path) -> None:
    site.join("pi-1")
    pid, run_id, wanted = site.serve.popen.pid, site.status().run_id, site.ids(8)
    assert site.fails_to_serve(tmp_path).startswith(
        f"error: a coordinator is already running on this port (pid {pid}); end it with `headwise "
    )
    # Where it cannot see the first one's admin socket, as another user's, the ports tell.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    error = site.fails_to_serve(elsewhere)
    assert f"error: cannot bind tcp://127.0.0.1:{site.port + 1}: Address already in use" in error
    assert f"tcp://127.0.0.1:{site.port} stands for that port and the next two" in error
    assert (site.ids(8), site.status().run_id) == (wanted, run_id)


def test_agents_keep_to_the_coordinator_they_know(site: Keyed) -> None:
    site.join("pi-1", "pi-2")
    wanted = site.ids(8)
    second = site.second()
    try:
        words = ("--prompt-ids", "5", "--attach", str(second.port), "--wait-s", "0.5")
        with second.command("run", *words) as hasty:
            assert hasty.wait() == 1
            assert "waiting for 1 more agent: none is here; pi-1 is not here" in hasty.stderr
        assert site.ids(8) == wanted
        # Not even while theirs is away do they go to the other one, though its key is the same.
        site.kill()
        for name in ("pi-1", "pi-2"):
            site.agents[name].until("stderr", "no answer from the coordinator|lost the coordinator")
        site.start()
        site.until_ready("pi-1", "pi-2")
        assert site.ids(8) == wanted
        status = second.status()
        # Agents that were there and left again would be listed.
        assert (status.state, status.agents, status.n_served) == ("waiting", [], 0)
        # One that is sent there joins it, and the first one takes that for a loss as any other.
        site.add_by("pi-2", "--join", site.join_file("pi-2"), "--coordinator", second.endpoint)
        second.until_ready("pi-2")
        site.until_ready("pi-1")
        assert second.ids(8) == site.ids(8) == wanted
    finally:
        second.close()


def test_one_join_file_on_two_boards(site: Keyed) -> None:
    site.join("pi-1")
    wanted, epoch = site.ids(8), site.status().epoch
    site.add_by("twin", "--join", site.join_file("pi-1"))
    twin = site.agents["twin"]

    def told_twice() -> bool:
        # All the while the first is undisturbed.
        assert site.ids(8) == wanted
        return twin.stderr.count(TAKEN) >= 2

    # It is told why, and asks again: the first may be about to leave.
    assert wait_until(told_twice), twin.stderr
    assert twin.popen.poll() is None
    assert f"refused an agent: {TAKEN}" in site.serve.stderr
    assert site.status().epoch == epoch
    site.agents["pi-1"].close()
    site.until(lambda status: status.epoch > epoch)
    site.until_ready("pi-1")
    assert site.ids(8) == wanted
    # Now the first is the second.
    first = Command("agent", "--join", site.join_file("pi-1"), "--threads", "1")
    with first:
        first.until("stderr", TAKEN)
    assert "Traceback" not in site.serve.stderr + twin.stderr + first.stderr
