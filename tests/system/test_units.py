"""The systemd units: what they forbid must not be what headwise needs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.processes import AGENT, HEADWISE, ROOT, Command, free_port
from tests.system.restricted import NO_SECCOMP

UNITS = ROOT / "tools" / "systemd"
STORY = ["-p", "Once upon a time", "-n", "12"]


def families(unit: str) -> str:
    """Return the address families that a unit allows, as it writes them."""
    text = (UNITS / f"headwise-{unit}.service").read_text()
    (found,) = re.findall(r"^RestrictAddressFamilies=(.*)$", text, re.MULTILINE)
    return str(found)


def under(allowed: str, *words: str) -> tuple[str, ...]:
    """Return the words of a program that may use these families only."""
    return (sys.executable, "-m", "tests.system.restricted", allowed, "--", *words)


def probe(allowed: str, family: str) -> int:
    """Return the exit code of a program that makes a socket of a family."""
    text = f"import socket; socket.socket(socket.{family}, socket.SOCK_DGRAM)"
    words = under(allowed, sys.executable, "-c", text)
    return subprocess.run(words, cwd=ROOT, stderr=subprocess.DEVNULL, check=False).returncode


@pytest.fixture(scope="module", autouse=True)
def seccomp() -> None:
    """Skip where no filter can be set up; check that the filter filters."""
    if probe("AF_UNIX", "AF_UNIX") == NO_SECCOMP:
        pytest.skip("this machine or kernel lets no seccomp filter be set up")
    assert probe("AF_UNIX AF_INET", "AF_INET") == 0
    assert probe("AF_UNIX AF_INET", "AF_NETLINK") == 1


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {
        "XDG_RUNTIME_DIR": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        pytest.param("127.0.0.1", marks=pytest.mark.slow),
        pytest.param("[::1]", marks=pytest.mark.slow),
    ],
)
def test_a_cluster_works_within_its_units(tmp_path: Path, env: dict[str, str], host: str) -> None:
    port, join = free_port(), tmp_path / "pi-1.join"
    at = ("--address", f"tcp://{host}:{port}", "-o", str(join))
    for words in (("init",), ("add", "pi-1", *at)):
        with Command("keys", *words, env=env) as keys:
            assert keys.wait() == 0, keys.stderr
    # As the unit does: only an address other than * lets libzmq look at the interfaces.
    bind = "::" if host == "[::1]" else "0.0.0.0"
    serve = Command(
        "serve", "--host", bind, "--port", str(port),
        program=under(families("coordinator"), *HEADWISE), env=env,
    )  # fmt: skip
    agent = Command(
        "--join", join, "--threads", "1", "--cache-dir", tmp_path / "cache",
        program=under(families("agent"), *AGENT), env=env,
    )  # fmt: skip
    with serve, agent:
        serve.until("stderr", "listening")
        with Command("run", *STORY, "--attach", str(port), env=env) as run:
            assert run.wait() == 0, run.stderr + serve.stderr + agent.stderr
            assert len(run.stdout.split()) > 5


def test_the_coordinators_unit_binds_what_is_tested() -> None:
    text = (UNITS / "headwise-coordinator.service").read_text()
    assert re.search(r"^ExecStart=.* serve .*--host 0\.0\.0\.0 ", text, re.MULTILINE)
