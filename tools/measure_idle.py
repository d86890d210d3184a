"""What agents and the coordinator take of a core while idle, and what heartbeats take of it.

`python tools/measure_idle.py --shape ../shared/models/configs/tinyllama_1b_chat_v1.0.json` starts
two clusters side by side, one as it is and one whose agents send a heartbeat every ten seconds
only, and reads the CPU times of their threads in the same windows of time: first while nobody asks
for anything, then while each writes one text after the other. The difference is what heartbeats
and all that is measured for them cost, whatever else the machine does. The last line is one JSON
object with percents of one core; ends with 1 if heartbeats take more than the limit.
"""

import argparse
import json
import os
import secrets
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from agent.emulation import parse_rate
from agent.shell import run_verb
from coordinator.admin_messages import Generate
from coordinator.control import HEARTBEAT_S
from kernels.errors import HeadwiseError, InputError
from tools.faults.cpu_time import CpuTimes, Shares
from tools.faults.direct import DirectCables
from tools.faults.scratch import add_model_arguments, scratch
from tools.faults.seldom import SELDOM_S
from tools.faults.site import Site

__all__ = ["add_arguments", "run"]

WAIT_S = 120.0
# Links are measured and weights are checked until then.
SETTLE_S = 15.0
# The limit of issue 5, of one core.
MOST = 0.005
COORDINATOR = "coordinator"


class _Window(NamedTuple):
    """CPU shares of the processes of both clusters, by name, in one window of time."""

    often: dict[str, Shares]
    seldom: dict[str, Shares]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the measurement."""
    add = parser.add_argument
    add_model_arguments(parser)
    add("--agents", type=int, default=3, help="of each cluster (3)")
    add("--bytes-per-s", type=parse_rate, default=1e9, help="rate of the boards (1e9)")
    add("--seconds", type=float, default=60.0, help="of each window (60)")
    add("--repeat", type=int, default=2, help="windows of each kind (2)")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 1 if heartbeats take more than the limit.

    Raises:
        HeadwiseError: it could not begin, or a text was not written.
    """
    if args.seconds < 1.0 or args.agents < 1 or args.repeat < 1:
        raise InputError("--seconds, --agents and --repeat must be 1 or more")
    with scratch(args) as (root, model):
        idle, writing = _measure(args, model, root)
    report = {
        "agents": args.agents,
        "seconds": args.seconds * args.repeat,
        "load": os.getloadavg()[0],
        "idle": _told(idle),
        "writing": _told(writing),
    }
    report["ok"] = all(_heartbeats(w, of) <= MOST for w in (idle, writing) for of in (True, False))
    print(json.dumps(report))
    return int(not report["ok"])


def _measure(
    args: argparse.Namespace, model: Path, root: Path
) -> tuple[list[_Window], list[_Window]]:
    often = _site(args, model, root / "often", "tools.cli")
    try:
        seldom = _site(args, model, root / "seldom", "tools.faults.seldom")
    except BaseException:
        often.close()
        raise
    sites = (often, seldom)
    idle: list[_Window] = []
    writing: list[_Window] = []
    try:
        for site in sites:
            _begin(site, args)
        time.sleep(SETTLE_S)
        for _ in range(args.repeat):
            idle.append(_look(sites, args.seconds))
            writers = [_Writer(site) for site in sites]
            try:
                writing.append(_look(sites, args.seconds))
            finally:
                for writer in writers:
                    writer.stop()
    finally:
        for site in sites:
            site.close()
    return idle, writing


def _site(args: argparse.Namespace, model: Path, root: Path, module: str) -> Site:
    root.mkdir()
    serve = ("--exact", "-c", "512", "--min-agents", str(args.agents), "--place", "spread")
    boards = ("--model-dir", model)
    cables, mark = DirectCables(), secrets.token_hex(8)
    return Site(model, cables, serve, boards, args.bytes_per_s, root, mark, module)


def _begin(site: Site, args: argparse.Namespace) -> None:
    """Have a cluster be ready, and everything that happens once behind it."""
    names = [f"board-{i + 1}" for i in range(args.agents)]
    site.await_listening()
    site.add(*names)
    site.await_ready(*names)
    site.text(Generate(prompt_ids=[1, 2, 3], max_tokens=8, wait_s=WAIT_S))


def _look(sites: tuple[Site, Site], for_s: float) -> _Window:
    """Return the shares of a window that begins now."""
    before = [{name: CpuTimes(pid) for name, pid in site.pids.items()} for site in sites]
    time.sleep(for_s)
    often, seldom = ({n: times.shares() for n, times in each.items()} for each in before)
    return _Window(often, seldom)


class _Writer:
    """Reads one text after the other from a cluster."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._over = threading.Event()
        self._error: HeadwiseError | None = None
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        ask = Generate(prompt_ids=[1, 2, 3], max_tokens=100, wait_s=WAIT_S)
        try:
            while not self._over.is_set():
                self._site.text(ask)
        except HeadwiseError as e:
            self._error = e

    def stop(self) -> None:
        """Wait for the end of the present text.

        Raises:
            HeadwiseError: one was not written.
        """
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


def _told(windows: list[_Window]) -> dict[str, object]:
    """Return percents of one core, over all windows; those of an agent are the mean of all."""
    return {
        "agent_percent": _percent(_mean(windows, False, "often")),
        "coordinator_percent": _percent(_mean(windows, True, "often")),
        "agent_threads_percent": _threads(windows, False),
        "coordinator_threads_percent": _threads(windows, True),
        "agent_seldom_percent": _percent(_mean(windows, False, "seldom")),
        "coordinator_seldom_percent": _percent(_mean(windows, True, "seldom")),
        "heartbeats_agent_percent": _percent(_heartbeats(windows, False)),
        "heartbeats_coordinator_percent": _percent(_heartbeats(windows, True)),
    }


def _shares(windows: list[_Window], of_coordinator: bool, which: str) -> list[Shares]:
    return [
        shares
        for window in windows
        for name, shares in getattr(window, which).items()
        if (name == COORDINATOR) is of_coordinator
    ]


def _mean(windows: list[_Window], of_coordinator: bool, which: str) -> float:
    return statistics.mean(s.total for s in _shares(windows, of_coordinator, which))


def _control(windows: list[_Window], of_coordinator: bool, which: str) -> float:
    """Return the mean share of the threads that send, carry and take heartbeats."""
    ours = ("control" if of_coordinator else "main",)
    found = _shares(windows, of_coordinator, which)
    return statistics.mean(sum(s.threads.get(n, 0.0) for n in ours) for s in found)


def _heartbeats(windows: list[_Window], of_coordinator: bool) -> float:
    """Return what heartbeats take, by the difference to a cluster that has fewer of them."""
    often, seldom = (_control(windows, of_coordinator, w) for w in ("often", "seldom"))
    return (often - seldom) / (1.0 - HEARTBEAT_S / SELDOM_S)


def _threads(windows: list[_Window], of_coordinator: bool) -> dict[str, float]:
    found = _shares(windows, of_coordinator, "often")
    names = sorted({name for s in found for name in s.threads})
    means = {n: statistics.mean(s.threads.get(n, 0.0) for s in found) for n in names}
    return {name: _percent(share) for name, share in means.items() if share >= 1e-5}


def _percent(share: float) -> float:
    return round(100.0 * share, 3)


if __name__ == "__main__":
    sys.exit(run_verb("measure_idle", "What idling costs.", (add_arguments, run)))
