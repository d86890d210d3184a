"""A coordinator that stays, through its own life: too few agents, killed, restarted, stopped."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from agent.ids import AgentName, InstanceId
from agent.messages import (
    Assignment,
    Failed,
    Heartbeat,
    Hello,
    decode_coordinator_message,
    encode,
)
from agent.versions import our_versions
from tests.system.processes import free_port, wait_until
from tests.system.site import Site
from tools.cli import main
from weights.demo import demo_path

ONCE = ["-p", "Once upon a time", "-n", "12"]
LONG = ["-p", "Once upon a time", "--temperature", "2", "-n", "240"]
ENDLESS = ["--prompt-ids", "5,6,7", "-n", "8000"]


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def site(runtime: Path, endless: Path) -> Iterator[Site]:
    """A coordinator without agents yet."""
    site = Site(runtime, endless, "-c", "8192", "--place", "spread")
    yield site
    site.close()


@pytest.mark.slow
def test_whoever_waits_is_told_who_is_missing(runtime: Path) -> None:
    site = Site(runtime, demo_path(), "--min-agents", "2")
    try:
        with site.command("run", *ONCE, "--attach", "--wait-s", "0.3") as hasty:
            assert hasty.wait() == 1
            waiting, error = hasty.stderr.splitlines()
            assert waiting == "waiting for 2 more agents: none is here"
            assert error == (
                "error: gave up after 0.3 s of waiting for 2 more agents: none is here; start "
                f"others with `headwise agent --coordinator tcp://HOST:{site.port}`"
            )
        with site.command("run", *ONCE) as patient:
            site.add("pi-1")
            patient.until("stderr", "waiting for 1 more agent: here is pi-1\n")
            assert site.status().state == "waiting"
            site.add("pi-2")
            assert patient.wait() == 0
            assert len(patient.stdout.split()) > 5
            words = patient.stdout.strip()
        stopped(site)
        # Neither what was asked nor what was written is in the log.
        assert "request ended" in site.serve.stderr
        assert "Once upon" not in site.serve.stderr
        assert words not in site.serve.stderr
    finally:
        site.close()


def stopped(site: Site) -> None:
    """End the coordinator by the `stop` verb, which waits for its end."""
    with site.command("stop", "--port", str(site.port)) as stop:
        assert stop.wait() == 0, stop.stderr
        assert stop.stdout == "the coordinator has stopped\n"
    assert not site.path.exists()
    assert site.serve.wait() == 0
    assert "Traceback" not in site.serve.stderr


@pytest.mark.slow
def test_a_killed_coordinator_is_replaced_and_its_agents_return(site: Site) -> None:
    site.add("pi-1")
    site.until_ready("pi-1")
    wanted, run_id = site.ids(8), site.status().run_id
    with site.command("run", *ENDLESS) as client:
        client.until("stdout", r"(\d+ ){5}")
        site.kill()
        assert client.wait() == 1
        assert "the coordinator on port" in client.stderr
        assert "has gone" in client.stderr
    # A dead coordinator's socket file is no coordinator.
    assert site.path.exists()
    with site.command("status") as status:
        assert status.wait() == 1
        assert status.stderr == (
            "error: no coordinator of yours runs on this machine; start one with `headwise serve`\n"
        )
    site.start()
    site.until_ready("pi-1")
    assert site.ids(8) == wanted
    assert site.status().run_id != run_id
    assert site.agents["pi-1"].popen.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_text_the_line_and_the_coordinator(
    site: Site, number: signal.Signals
) -> None:
    site.add("pi-1")
    site.until_ready("pi-1")
    with site.command("run", *ENDLESS) as first, site.command("run", *ENDLESS) as second:
        # The first may be in line for a moment, too, before the second has asked.
        site.until(lambda status: (status.state, status.n_waiting) == ("writing", 1))
        site.serve.signal(number)
        assert site.serve.wait() == 0
        for client in (first, second):
            assert client.wait() == 1
            assert client.stderr.endswith(
                "error: the coordinator has been stopped; start the request again once it is back\n"
            )
    assert not site.path.exists()
    # The agent was told, and waits for the next one.
    site.agents["pi-1"].until("stderr", "the coordinator ended its run")
    assert site.agents["pi-1"].popen.poll() is None


@pytest.mark.slow
def test_agents_dial_an_ipv6_address(runtime: Path, endless: Path) -> None:
    site = Site(runtime, endless, "--host", "::1")
    try:
        site.endpoint = f"tcp://[::1]:{site.port}"
        site.add("pi-1")
        site.until_ready("pi-1")
        assert len(site.ids(3)) == 3
    finally:
        site.close()


def test_hosts_and_ports_that_cannot_be(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    for words, text in (
        (["--host", "no.such.host.invalid"], "error: --host no.such.host.invalid: "),
        (["--port", "65534"], "error: --port 65534; ports 1 to 65533"),
        (["--min-agents", "0"], "error: --min-agents 0; 1 to"),
    ):
        assert main(["serve", *words]) == 1
        assert capsys.readouterr().err.startswith(text)


@pytest.mark.slow
def test_a_signal_while_weights_are_loaded_ends_it_at_once(site: Site) -> None:
    site.add("pi-1")
    site.until(lambda status: bool(status.agents))
    # It hears of its part of the plan, but does not answer.
    site.agents["pi-1"].signal(signal.SIGSTOP)
    site.until(lambda status: status.state == "loading")
    asked_s = time.monotonic()
    stopped(site)
    assert time.monotonic() - asked_s < 3.0
    assert "ending while weights were being loaded" in site.serve.stderr


@pytest.mark.slow
def test_a_board_that_cannot_load_does_not_keep_others_from_serving(site: Site) -> None:
    hello = Hello(AgentName("bad"), InstanceId("1"), our_versions(), 1, 1, 1 << 33, 1e9, "a board")
    with zmq.Context() as context, context.socket(zmq.DEALER) as bad:
        bad.setsockopt(zmq.LINGER, 0)
        bad.setsockopt(zmq.ROUTING_ID, b"bad/1")
        bad.connect(site.endpoint)
        bad.send(encode(hello))
        site.add("pi-1")

        def answer() -> bool:
            bad.send(encode(Heartbeat(1, 1 << 33, 0)))
            while bad.poll(100):
                message = decode_coordinator_message(bad.recv())
                if isinstance(message, Assignment):
                    bad.send(encode(Failed(message.epoch, "the SD card is gone")))
            status = site.status()
            states = {agent.name: agent.state for agent in status.agents}
            return states == {"bad": "set aside", "pi-1": "ready"} and status.state == "ready"

        assert wait_until(answer), site.status()
        assert len(site.ids(3)) == 3


@pytest.mark.slow
def test_a_revoked_key_ends_the_links_and_the_others_go_on(
    runtime: Path, endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runtime)
    port, keys = free_port(), str(runtime / "keys")
    assert main(["keys", "init", "--keys", keys]) == 0
    for name in ("pi-1", "pi-2"):
        address = f"tcp://127.0.0.1:{port}"
        assert main(["keys", "add", name, "--keys", keys, "--address", address]) == 0
    options = ("-c", "8192", "--place", "spread", "--min-agents", "1")
    site = Site(runtime, endless, *options, port=port, links=("--keys", keys))
    try:
        with site.command("run", *ENDLESS) as client:
            client.until("stderr", "1 more agent: none is here; pi-1 is not here; pi-2 is not here")
            for name in ("pi-1", "pi-2"):
                site.add_by(name, "--join", runtime / f"{name}.join")
            client.until("stdout", r"(\d+ ){5}")
            site.until(lambda status: len(status.agents) == 2)
            client.signal(signal.SIGINT)
            client.wait()
        site.until_ready("pi-1", "pi-2")
        with site.command("run", *ENDLESS) as client:
            client.until("stdout", r"(\d+ ){5}")
            assert main(["keys", "revoke", "pi-2", "--keys", keys]) == 0
            client.until("stderr", r"agent 'pi-2' was lost: [^\n]*; the text goes on without it")
            n_words = len(client.stdout.split())
            client.until("stdout", rf"(\d+ ){{{n_words + 5}}}")
            client.signal(signal.SIGINT)
            client.wait()
        site.until_ready("pi-1")
        assert len(site.ids(3)) == 3
    finally:
        site.close()
