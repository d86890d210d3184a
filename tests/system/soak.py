"""Restarts under load: agents and the coordinator are killed, clients never pause.

    python -m tests.system.soak --agents 50 --coordinators 20

Prints one JSON object: how long until all agents were ready again, what the texts were like, what
the processes that lived through it held at the beginning and the end, and how many KV pages the
agents held while a text was written and once none was. Ends with 1 if a text was wrong or a page
was kept.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from coordinator.admin_messages import Generate, Piece
from kernels.errors import RemoteError
from tests.system.conftest import random_model
from tests.system.processes import wait_until
from tests.system.site import READY_S, Site

NAMES = ["pi-1", "pi-2", "pi-3"]
N_CLIENTS = 3
N_TOKENS = 8
# Every so many texts a client goes away after its second token.
LEAVES_EVERY = 4
CONTEXT_TOKENS = 8192
N_CONTEXTS = 4
# The tokens of one whole context, and as much more as the last pages of four may leave unused.
N_PAGES = (CONTEXT_TOKENS + 63 * N_CONTEXTS) // 64
# Texts, and texts given up, under the plan whose pages are counted at the end.
N_LAST = 40


class Load:
    """Clients that ask for the same text without pause, and what they got.

    Now and then one goes away half way: what its text held must be free again, too.
    """

    def __init__(self, site: Site, wanted: list[int]) -> None:
        self._site, self._wanted = site, wanted
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.n_right = self.n_failed = self.n_wrong = self.n_left = 0
        self.errors: dict[str, int] = {}
        self._threads = [threading.Thread(target=self._run) for _ in range(N_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def goes_on(self, n: int) -> bool:
        """Wait until n more texts were right and some were given up; False if that takes long."""
        n_right, n_left = self.n_right + n, self.n_left + n // LEAVES_EVERY
        return wait_until(lambda: self.n_right >= n_right and self.n_left >= n_left, READY_S)

    def _run(self) -> None:
        n = 0
        while not self._stop.is_set():
            n += 1
            try:
                if n % LEAVES_EVERY == 0:
                    leave(self._site)
                    with self._lock:
                        self.n_left += 1
                    continue
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


def leave(site: Site) -> None:
    """Ask for a long text and go away after its second token."""
    with site.client() as client:
        n_tokens = 0
        for reply in client.ask(Generate(prompt_ids=[5, 6, 7], max_tokens=CONTEXT_TOKENS)):
            n_tokens += isinstance(reply, Piece)
            if n_tokens == 2:
                return
    raise RemoteError("the coordinator has gone")


def pages_in_use(site: Site) -> dict[str, int | None]:
    """Return the KV pages that each agent's last heartbeat says are held; None: no heartbeat."""
    free = {a.name: a.kv_free_pages for a in site.status().agents if a.state == "ready"}
    return {name: None if n is None else N_PAGES - n for name, n in sorted(free.items())}


def pages_kept(site: Site) -> dict[str, dict[str, int | None]]:
    """Return the pages in use while one text is written, and once it has been given up.

    The first figure shows that the second is of a later heartbeat, and not just always 0. The text
    reserves all pages but three, so it is not even begun if a few contexts were left open.
    """
    ask = Generate(prompt_ids=[5] * 130, max_tokens=CONTEXT_TOKENS)
    with site.client() as client:
        next(reply for reply in client.ask(ask) if isinstance(reply, Piece))
        wait_until(lambda: all(n and n >= 3 for n in pages_in_use(site).values()), READY_S)
        during = pages_in_use(site)
    wait_until(lambda: set(pages_in_use(site).values()) == {0}, READY_S)
    return {"during": during, "after": pages_in_use(site)}


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
    options = ("--exact", "-c", str(CONTEXT_TOKENS), "--place", "spread", "--min-agents", "2")
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
            went_on = load.goes_on(N_LAST)
        finally:
            load.close()
        pages = pages_kept(site)
    finally:
        site.close()
    none_kept = pages["after"] == dict.fromkeys(NAMES, 0) and all(pages["during"].values())
    return {
        "sound": went_on and none_kept and load.n_wrong == 0,
        "agent_restarts": n_agents, "agents_ready_s": round(agents_s, 2),
        "coordinator_restarts": n_coordinators, "coordinator_ready_s": round(coordinator_s, 2),
        "n_right": load.n_right, "n_failed": load.n_failed, "n_wrong": load.n_wrong,
        "n_left": load.n_left, "went_on": went_on, "kv_pages": pages,
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
    sys.exit(0 if report["sound"] else 1)


if __name__ == "__main__":
    main()
