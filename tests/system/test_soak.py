"""A short soak as users run it: `tools/soak.py` with six faults, one of each kind."""

import json
import signal
import sys

import psutil
import pytest

from tests.system.processes import ROOT, Command, wait_until
from tools.faults.process import MARK, marked_pids

SOAK = (sys.executable, str(ROOT / "tools" / "soak.py"))
WITHIN_S = 400.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


def test_six_faults_leave_no_wrong_token_no_lost_stream_and_nothing_behind() -> None:
    words = ("--faults", "6", "--seed", "1", "--cables", "proxy", "--agents", "3", "-n", "80", "-v")
    with Command(*words, program=SOAK) as command:
        command.wait(WITHIN_S)
        report = json.loads(command.stdout.splitlines()[-1])
        assert report["problems"] == [], command.stderr
        assert report["faults"] == 6
        assert report["faults_on_running_streams"] >= 4, command.stderr
        # Each of five prompts once more at the end, undisturbed.
        assert report["streams_finished"] >= 5
        assert (report["mismatched"], report["lost"], report["leaked"]) == (0, 0, 0), report


def test_stopping_a_soak_ends_all_its_processes() -> None:
    """The site that it has set up is known by a mark in the environment of its processes."""
    words = ("--faults", "6", "--cables", "proxy", "--agents", "3", "-n", "80", "-v")
    with Command(*words, program=SOAK) as command:
        command.until("stderr", "undisturbed texts", WITHIN_S)
        children = psutil.Process(command.popen.pid).children()
        (mark,) = {child.environ()[MARK] for child in children}
        assert len(marked_pids(mark)) >= 4
        command.signal(signal.SIGINT)
        assert command.wait() == 130, command.stderr
        assert wait_until(lambda: marked_pids(mark) == [])
