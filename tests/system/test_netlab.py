"""The README's cluster between emulated hosts, with what goes wrong on real ones. Needs root."""

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from agent.versions import our_versions
from tests.system.conftest import random_model
from tests.system.processes import HEADWISE, ROOT, Command, wait_until

NETLAB = ROOT.parent / "shared" / "tools" / "netlab" / "netlab.py"
PORT = "7070"
# Agents of releases that are still to come.
OTHERS = {
    "protocol": "import agent.frames as other; other.PROTOCOL_VERSION += 1",
    "layout": "import agent.versions as other; other.LAYOUT_VERSION += 1",
    "numerics": "import agent.versions as other; other.NUMERICS_VERSION += 1",
}
TELLS_S = 10.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NETLAB.exists(), reason="../shared/tools/netlab is not here"),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


def netlab(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(NETLAB), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def lab() -> Iterator[list[str]]:
    """Three hosts on a switch; their addresses."""
    if netlab("status").returncode == 0:
        pytest.skip("another lab is up on this machine")
    up = netlab("up", "--hosts", "3", "--rate", "1gbit", "--delay-ms", "0.3", "--overhead-us", "70")
    try:
        if up.returncode != 0:
            pytest.skip(f"no lab can be made here: {up.stderr.strip()[-300:]}")
        yield [netlab("addr", f"h{i}").stdout.strip() for i in (1, 2, 3)]
    finally:
        netlab("down")


class Host:
    """One host of the lab with a home directory of its own."""

    def __init__(self, number: int, root: Path) -> None:
        self.name = f"h{number}"
        self.home = root / self.name
        self.home.mkdir()
        self._commands: list[Command] = []

    def run(self, *words: str | Path, program: Sequence[str] = HEADWISE) -> Command:
        """Start a headwise command on this host, by another program if that is said."""
        command = Command(
            *words,
            program=("ip", "netns", "exec", f"nlab-{self.name}", *program),
            env={
                "HOME": str(self.home),
                "XDG_CONFIG_HOME": str(self.home / "config"),
                "XDG_RUNTIME_DIR": str(self.home),
            },
        )
        self._commands.append(command)
        return command

    def ok(self, *words: str | Path) -> str:
        """Run a command to its end and return its stdout."""
        command = self.run(*words)
        assert command.wait() == 0, command.stderr
        return command.stdout

    def close(self) -> None:
        for command in self._commands:
            command.close()


@pytest.fixture
def hosts(lab: list[str], tmp_path: Path) -> Iterator[list[Host]]:
    hosts = [Host(i, tmp_path) for i in (1, 2, 3)]
    yield hosts
    for host in hosts:
        host.close()
        netlab("mend", host.name)


def agent(host: Host, join: Path) -> Command:
    return host.run("agent", "--join", join, "--threads", "1", "-v")


def join_files(hosts: list[Host], address: str) -> list[Path]:
    """Steps 2 and 3 of the README: keys, and a file for each board."""
    hosts[0].ok("keys", "init")
    files = []
    for host, name in zip(hosts[1:], ("pi-1", "pi-2"), strict=True):
        made = hosts[0].home / f"{name}.join"
        hosts[0].ok("keys", "add", name, "--address", f"tcp://{address}:{PORT}", "-o", made)
        copied = host.home / made.name
        copied.write_bytes(made.read_bytes())
        copied.chmod(0o600)
        files.append(copied)
    return files


def serve(host: Host, address: str, *options: str) -> Command:
    command = host.run("serve", "--host", address, "--place", "spread", *options)
    command.until("stderr", "listening")
    return command


def test_the_readmes_cluster_tells_a_story_over_two_boards(
    lab: list[str], hosts: list[Host]
) -> None:
    files = join_files(hosts, lab[0])
    serve(hosts[0], lab[0], "--min-agents", "2", "--exact")
    for host, file in zip(hosts[1:], files, strict=True):
        agent(host, file)
    words = ("-p", "Once upon a time", "-n", "60")
    told = hosts[0].ok("run", *words, "--wait-s", "60")
    assert told == hosts[0].ok("run", "--local", "1", "--exact", *words)
    table = hosts[0].ok("status")
    assert "pi-1" in table
    assert "pi-2" in table
    # What the lab adds is seen: a loopback's is 0.01 ms.
    trips = [float(trip) for trip in re.findall(r" (\d+\.\d\d) ms ", table)]
    assert len(trips) == 2
    assert all(0.3 <= trip < 3.0 for trip in trips), table
    # The boards have pulled their weights; nobody has connected to them.
    for host in hosts[1:]:
        cached = [p for p in host.home.rglob("weights.bin")]
        assert cached, list(host.home.rglob("*"))
        assert cached[0].stat().st_blocks > 0


def test_a_text_outlives_a_cut_cable_and_a_mended_one_brings_the_board_back(
    lab: list[str], hosts: list[Host]
) -> None:
    files = join_files(hosts, lab[0])
    serve(hosts[0], lab[0], "--min-agents", "2")
    for host, file in zip(hosts[1:], files, strict=True):
        agent(host, file)
    assert hosts[0].ok("run", "-n", "5", "--wait-s", "60")
    text = hosts[0].run("run", "--prompt-ids", "1", "-n", "400", "--temp", "5", "--seed", "3")
    text.until("stdout", r"\w")
    netlab("cut", "h3")
    text.until("stderr", r"agent 'pi-2' was lost: [^\n]*; the text goes on without it", TELLS_S)
    assert text.wait() == 0
    netlab("mend", "h3")
    assert hosts[0].ok("run", "-n", "5", "--wait-s", "60")


def test_what_is_wrong_is_told_by_the_agent_in_time(lab: list[str], hosts: list[Host]) -> None:
    good, other = join_files(hosts, lab[0])
    serve(hosts[0], lab[0])
    closed = hosts[1].home / "closed.join"
    closed.write_bytes(good.read_bytes())
    closed.chmod(0o600)
    began_s = time.monotonic()
    agents = {
        "a closed port": hosts[1].run(
            "agent", "--join", closed, "--coordinator", f"tcp://{lab[0]}:9", "-v"
        ),
        "a wrong name": hosts[1].run(
            "agent", "--join", good, "--coordinator", f"tcp://no-such-host.invalid:{PORT}", "-v"
        ),
    }
    hosts[0].ok("keys", "revoke", "pi-2")
    agents["a wrong key"] = agent(hosts[2], other)
    texts = {
        "a closed port": r"no answer from the coordinator|refused",
        "a wrong name": "cannot be resolved",
        "a wrong key": "key",
    }
    for what, command in agents.items():
        command.until("stderr", texts[what], TELLS_S + 5.0)
    assert time.monotonic() - began_s < 2 * TELLS_S


def version_text(**rises: int) -> str:
    """Return how our versions, some of them higher, stand in an error."""
    ours = our_versions()
    numbers = {name: getattr(ours, name) + rises.get(name, 0) for name in OTHERS}
    inside = ", ".join(f"{name} {number}" for name, number in numbers.items())
    return f"headwise {ours.software} ({inside})"


@pytest.mark.parametrize("what", OTHERS)
def test_an_agent_of_another_version_is_told_apart_by_both_sides(
    lab: list[str], hosts: list[Host], what: str
) -> None:
    good, other = join_files(hosts, lab[0])
    coordinator = serve(hosts[0], lab[0])
    program = f"{OTHERS[what]}; import sys; from tools.cli import main; sys.exit(main())"
    words = ("agent", "--join", other, "--threads", "1")
    wrong = hosts[2].run(*words, program=(sys.executable, "-c", program))
    assert wrong.wait(TELLS_S) == 1
    reason = (
        f"agent 'pi-2' has {version_text(**{what: 1})}, the coordinator {version_text()}; "
        f"install the same headwise release on both"
    )
    assert wrong.stderr.endswith(
        f"error: the coordinator at tcp://{lab[0]}:{PORT} refused this agent: {reason}\n"
    )
    coordinator.until("stderr", re.escape(f"refused an agent: {reason}"), TELLS_S)
    # It keeps nobody else out.
    agent(hosts[1], good)
    assert hosts[0].ok("run", "-n", "5", "--wait-s", "60")


def pulled_bytes(host: Host) -> int:
    """How much of any model's weights is on a host's disk."""
    return sum(512 * path.stat().st_blocks for path in host.home.rglob("weights.bin"))


def test_a_pull_goes_on_after_each_of_many_cuts(
    lab: list[str], hosts: list[Host], tmp_path: Path
) -> None:
    model = random_model(
        tmp_path, "large", "f16", hidden_size=1024, intermediate_size=2816, num_hidden_layers=4
    )
    n_bytes = (model / "weights.bin").stat().st_size
    assert n_bytes > 60e6
    files = join_files(hosts, lab[0])
    netlab("set", "h2", "--rate", "200mbit", "--delay-ms", "0.3")
    serve(hosts[0], lab[0], "-m", str(model), "-c", "64")
    board = agent(hosts[1], files[0])
    rng = random.Random(5)
    n_cuts = 5
    for n in range(n_cuts):
        want_bytes = n_bytes * (n + rng.random()) / (n_cuts + 1)
        assert wait_until(lambda: pulled_bytes(hosts[1]) >= want_bytes, 90.0), board.stderr[-2000:]  # noqa: B023
        netlab("cut", "h2")
        before = pulled_bytes(hosts[1])
        # Long enough for both ends to notice, or not.
        wait_until(lambda: False, rng.choice([0.5, 4.0, 8.0]))
        assert pulled_bytes(hosts[1]) <= before + 8e6
        netlab("mend", "h2")
    assert hosts[0].ok("run", "--prompt-ids", "1", "-n", "3", "--wait-s", "120")
    verified = hosts[1].ok("cache", "verify")
    assert "0 damaged" in verified or "damaged" not in verified, verified
    entries = {path.name for path in hosts[1].home.rglob("*") if path.is_file()}
    assert not [name for name in entries if name.endswith((".tmp", ".part"))], entries
    netlab("set", "h2", "--rate", "1gbit", "--delay-ms", "0.3")
