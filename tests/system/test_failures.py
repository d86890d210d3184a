"""Processes that are killed, frozen or told to go, while a text is being written.

The model is random and never ends a text by itself: whatever ends it here is the failure.
"""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.processes import AGENT, Command, Words, free_port

ENDLESS = ["--prompt-ids", "5,6,7", "-n", "8000", "-c", "8192"]
# Limits of the issue and, for a frozen agent, the silence until it is given up and the end of its
# process.
KILLED_S = 3.0
FROZEN_S = 6.0
ORPHANED_S = 5.0


@pytest.fixture(params=["2", pytest.param("1", marks=pytest.mark.slow)], ids=["shared", "alone"])
def writing(request: pytest.FixtureRequest, endless: Path) -> Iterator[Command]:
    """A coordinator with local agents in the middle of a text."""
    with Command("run", "-m", endless, *ENDLESS, "--local", request.param) as coordinator:
        # Text arrives while the coordinator goes on: it streams.
        coordinator.until("stdout", r"(\d+ ){5}")
        assert len(coordinator.agents()) == int(request.param)
        assert coordinator.popen.poll() is None
        yield coordinator
        assert coordinator.leftovers() == []


def check_failed(coordinator: Command, text: str) -> None:
    """The command has ended with code 1 and one clear line; its agents are gone."""
    assert coordinator.leftovers() == []
    assert coordinator.popen.returncode == 1
    lines = coordinator.stderr.splitlines()
    assert len(lines) == 1, coordinator.stderr
    assert re.match(r"error: " + text, lines[0])
    # What was written before stays on stdout, as whole ids and a last line feed.
    assert re.fullmatch(r"(\d+ )+\n", coordinator.stdout)


def check_goes_on(coordinator: Command, lost: str) -> None:
    """Within seconds more words come, and one line says who is missing."""
    coordinator.until("stderr", rf"agent '{lost}' was lost: [^\n]*; going on with [^\n]*\n")
    n_words = len(coordinator.stdout.split())
    coordinator.until("stdout", rf"(\d+ ){{{n_words + 20}}}")
    assert coordinator.popen.poll() is None
    assert coordinator.stderr.count("\n") == 1, coordinator.stderr


def stop(coordinator: Command) -> None:
    coordinator.signal(signal.SIGINT)
    assert coordinator.wait() == 130


# In the run where nothing else keeps the processors busy: seconds count here.
@pytest.mark.slow
def test_after_a_kill_the_text_goes_on_or_ends_with_the_name(writing: Command) -> None:
    name, agent = max(writing.agents().items())
    survives = len(writing.agents()) > 1
    agent.kill()
    killed_s = time.monotonic()
    if survives:
        check_goes_on(writing, name)
        assert time.monotonic() - killed_s < KILLED_S
        stop(writing)
        return
    writing.wait()
    assert time.monotonic() - killed_s < KILLED_S
    check_failed(writing, f"agent '{name}' was lost: ")


@pytest.mark.slow
def test_after_a_freeze_the_text_goes_on_or_ends_with_the_name(writing: Command) -> None:
    name, agent = max(writing.agents().items())
    survives = len(writing.agents()) > 1
    agent.suspend()
    frozen_s = time.monotonic()
    if survives:
        check_goes_on(writing, name)
        assert time.monotonic() - frozen_s < FROZEN_S
        agent.resume()
        stop(writing)
        return
    writing.wait()
    assert time.monotonic() - frozen_s < FROZEN_S
    check_failed(writing, f"agent '{name}' was lost: (no heartbeat for|its hot link is closed)")


def test_ctrl_c_stops_the_text_and_all_processes(writing: Command) -> None:
    writing.signal(signal.SIGINT)
    assert writing.wait(5.0) == 130
    assert writing.leftovers() == []
    assert writing.stderr == "stopped\n"
    assert re.fullmatch(r"(\d+ )+\n", writing.stdout)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_no_agent_outlives_its_coordinator(writing: Command, number: signal.Signals) -> None:
    writing.signal(number)
    assert writing.leftovers(within_s=ORPHANED_S) == []
    assert writing.wait() == -number


def test_an_agent_that_cannot_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if '--leave-with-fd' in sys.orig_argv:\n"
        "    os.write(2, b'the board is on fire')\n"
        "    os._exit(3)\n"
    )
    with Command("run", "--local", "2", env={"PYTHONPATH": str(tmp_path)}) as coordinator:
        assert coordinator.wait() == 1
    assert re.fullmatch(
        r"error: agent 'local-\d' did not start: its process ended \(exit code 3\): "
        r"the board is on fire\n",
        coordinator.stderr,
    )


def test_an_agent_that_leaves_says_bye_and_ends_well(endless: Path, tmp_path: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    join: Words = ["--coordinator", endpoint, "--threads", "1", "--model-dir", endless]
    bind = ["--bind", endpoint, "--min-agents", "2", "--place", "spread"]
    with (
        Command("run", "-m", endless, *ENDLESS, *bind) as coordinator,
        Command(*join, "--name", "pi-1", program=AGENT) as stays,
        Command(*join, "--name", "pi-2", program=AGENT) as leaves,
    ):
        coordinator.until("stdout", r"(\d+ ){5}")
        leaves.signal(signal.SIGTERM)
        left_s = time.monotonic()
        assert leaves.wait() == 0
        check_goes_on(coordinator, "pi-2")
        assert time.monotonic() - left_s < KILLED_S
        stop(coordinator)
        # The other one waits for the next run.
        stays.until("stderr", "the coordinator ended its run|lost the coordinator")
        assert stays.popen.poll() is None


def test_too_few_agents_in_time(endless: Path) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    words: Words = [
        "run",
        "-m",
        endless,
        "--prompt-ids",
        "5",
        "--bind",
        endpoint,
        "--wait-s",
        "0.3",
    ]
    with Command(*words) as coordinator:
        assert coordinator.wait() == 1
    assert coordinator.stderr.startswith("error: 0 of 1 agents are here after 0.3 s (none); start")
