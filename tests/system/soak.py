"""Restarts under load: agents and the coordinator are killed, clients never pause.

    python -m tests.system.soak --agents 50 --coordinators 20

Prints one JSON object: how long until all agents were ready again, what the texts were like, and
what the processes that lived through it held at the beginning and the end.
"""

import argparse
import json
import random
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil

from kernels.errors import RemoteError
from tests.system.conftest import random_model
from tests.system.site import Site

NAMES = ["pi-1", "pi-2", "pi-3"]
N_CLIENTS = 3
N_TOKENS = 8


class Load:
    """Clients that ask for the same text without pause, and what they got."""

    def __init__(self, site: Site, wanted: list[int]) -> None:
        self._site, self._wanted = site, wanted
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.n_right = self.n_failed = self.n_wrong = 0
        self.errors: dict[str, int] = {}
        self._threads = [threading.Thread(target=self._run) for _ in range(N_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                right = self._site.ids(N_TOKENS) == self._wanted
            except RemoteError as e:
                with self._lock:
                    self.n_failed += 1
                    text = str(e)[:70]
                    self.errors[text] = self.errors.get(text, 0) + 1
                self._stop.wait(0.05)
                continue
            with self._lock:
                self.n_right += right
                self.n_wrong += not right

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def holdings(pid: int) -> dict[str, int]:
    """Return what a process holds."""
    process = psutil.Process(pid)
    memory = process.memory_info().rss
    return {"fds": process.num_fds(), "threads": process.num_threads(), "resident_bytes": memory}


def restart_agents(site: Site, n: int, rng: random.Random) -> float:
    """Kill or end agents one after the other; return the longest time until all were ready."""
    worst_s = 0.0
    for _ in range(n):
        name = rng.choice(NAMES)
        site.agents[name].signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        site.agents[name].wait()
        site.until(lambda s: {a.name for a in s.agents if a.state == "ready"} != set(NAMES))
        began_s = time.monotonic()
        site.add(name)
        site.until_ready(*NAMES)
        worst_s = max(worst_s, time.monotonic() - began_s)
    return worst_s


def restart_coordinator(site: Site, n: int) -> float:
    """Kill the coordinator n times; return the longest time until all agents were ready."""
    worst_s = 0.0
    for _ in range(n):
        site.kill()
        began_s = time.monotonic()
        site.start()
        site.until_ready(*NAMES)
        worst_s = max(worst_s, time.monotonic() - began_s)
    return worst_s


def soak(n_agents: int, n_coordinators: int, seed: int, root: Path) -> dict[str, object]:
    """Run it and return the report."""
    model = random_model(root, "soak")
    options = ("--exact", "-c", "8192", "--place", "spread", "--min-agents", "2")
    site = Site(root, model, *options)
    rng = random.Random(seed)
    try:
        site.add(*NAMES)
        site.until_ready(*NAMES)
        load = Load(site, site.ids(N_TOKENS))
        try:
            restart_agents(site, 3, rng)
            coordinator = [holdings(site.serve.popen.pid)]
            agents_s = restart_agents(site, n_agents - 3, rng)
            coordinator.append(holdings(site.serve.popen.pid))
            agent = site.agents[NAMES[0]].popen.pid
            restart_coordinator(site, 2)
            agents = [holdings(agent)]
            coordinator_s = restart_coordinator(site, n_coordinators - 2)
            agents.append(holdings(agent))
        finally:
            load.close()
    finally:
        site.close()
    return {
        "agent_restarts": n_agents, "agents_ready_s": round(agents_s, 2),
        "coordinator_restarts": n_coordinators, "coordinator_ready_s": round(coordinator_s, 2),
        "n_right": load.n_right, "n_failed": load.n_failed, "n_wrong": load.n_wrong,
        "errors": load.errors, "coordinator_first_last": coordinator, "agent_first_last": agents,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--coordinators", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        report = soak(args.agents, args.coordinators, args.seed, Path(root))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
