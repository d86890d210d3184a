"""What a cluster says of its links, against what emulated ones really are. Needs root."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.status import AgentStatus, Status
from tests.system.processes import HEADWISE, ROOT, Command, wait_until
from tools.faults.packet_filter import n_refused, refuse_connections

NETLAB = ROOT.parent / "shared" / "tools" / "netlab" / "netlab.py"
PORT = "7070"
# What TCP gets of a cable's rate with frames of 1500 bytes, by netlab's README and selftest.
TCP_SHARE = 0.9415
# Round trips that netlab aims at with 0.3 ms one way, by rate.
ROUND_TRIP_S = {1000: 0.604e-3, 100: 0.642e-3}
# Two probes a link, one after the other, and some that a busy machine spoils.
PROBED_S = 90.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.netns,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not NETLAB.exists(), reason="../shared/tools/netlab is not here"),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


def netlab(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(NETLAB), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Three hosts on a switch; the first one's address."""
    if netlab("status").returncode == 0:
        pytest.skip("another lab is up on this machine")
    up = netlab("up", "--hosts", "3", "--rate", "1gbit", "--delay-ms", "0.3", "--overhead-us", "70")
    try:
        if up.returncode != 0:
            pytest.skip(f"no lab can be made here: {up.stderr.strip()[-300:]}")
        yield netlab("addr", "h1").stdout.strip()
    finally:
        netlab("down")


class Lab:
    """A coordinator on the first host, agents with keys on the others."""

    def __init__(self, root: Path, address: str) -> None:
        self._root = root
        self._commands: list[Command] = []
        self.ok("h1", "keys", "init")
        self.run("h1", "serve", "--host", address, "--place", "spread", "--min-agents", "2").until(
            "stderr", "listening"
        )
        for host in ("h2", "h3"):
            file = root / f"{host}.join"
            self.ok("h1", "keys", "add", host, "--address", f"tcp://{address}:{PORT}", "-o", file)
            self.run(host, "agent", "--join", file, "--threads", "1", "-v")

    def run(self, host: str, *words: str | Path) -> Command:
        home = self._root / host
        home.mkdir(exist_ok=True)
        command = Command(
            *words,
            program=("ip", "netns", "exec", f"nlab-{host}", *HEADWISE),
            env={
                "HOME": str(home),
                "XDG_CONFIG_HOME": str(home / "config"),
                "XDG_RUNTIME_DIR": str(home),
            },
        )
        self._commands.append(command)
        return command

    def ok(self, host: str, *words: str | Path) -> str:
        command = self.run(host, *words)
        assert command.wait() == 0, command.stderr
        return command.stdout

    def agents(self) -> list[AgentStatus]:
        import msgspec

        status = msgspec.json.decode(self.ok("h1", "status", "--json"), type=Status)
        return status.agents

    def close(self) -> None:
        for command in self._commands:
            command.close()


@pytest.mark.parametrize("rate_mbit", [1000, 100])
def test_links_are_as_the_lab_made_them(address: str, tmp_path: Path, rate_mbit: int) -> None:
    for host in ("h1", "h2", "h3"):
        assert (
            netlab("set", host, "--rate", f"{rate_mbit}mbit", "--delay-ms", "0.3").returncode == 0
        )
    goodput_mbit = pytest.approx(TCP_SHARE * rate_mbit, rel=0.10)
    round_trip_s = pytest.approx(ROUND_TRIP_S[rate_mbit], rel=0.20)

    def told(agent: AgentStatus) -> bool:
        if not (agent.goodput_bytes_per_s and agent.round_trip_s and agent.exchange_s):
            return False
        # Frames take at least as long as a round trip, and what they wait for one another.
        is_exchange = agent.exchange_s > 0.8 * ROUND_TRIP_S[rate_mbit]
        is_goodput = agent.goodput_bytes_per_s / 125e3 == goodput_mbit
        return is_goodput and agent.round_trip_s == round_trip_s and is_exchange

    lab = Lab(tmp_path, address)
    try:
        # No model's pull is large enough to measure them: probes do.
        assert len(lab.ok("h1", "run", "-p", "One day", "-n", "120", "--wait-s", "60")) > 100
        # One probe may meet a moment in which the machine that plays all hosts stood still.
        are_told = lambda: all([told(agent) for agent in lab.agents()])  # noqa: E731
        assert wait_until(are_told, PROBED_S), lab.agents()
    finally:
        lab.close()


@pytest.mark.skipif(shutil.which("nft") is None, reason="there is no nft")
def test_a_packet_filter_refuses_who_dials_a_board(address: str) -> None:
    def dial(host: str) -> str:
        """Return how a call from the first host ends; nobody listens there."""
        to = netlab("addr", host).stdout.strip()
        call = f"import socket; socket.create_connection(({to!r}, 9), 0.5)"
        words = ["ip", "netns", "exec", "nlab-h1", sys.executable, "-c", call]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
        return done.stderr.splitlines()[-1]

    assert "refused" in dial("h3")
    refuse_connections("h3")
    assert n_refused("h3") == 0
    assert "timed out" in dial("h3")
    assert n_refused("h3") > 0
    assert "refused" in dial("h2")
