"""Resident memory of an agent after 200 tokens, by mapping, and what it costs while it idles.

`python tools/bench_memory.py` runs the demo model on one local agent. Counted is what `resident`
says: all but weights and KV pool. With `--idle 20` it also measures, before the first and after
the last token, which share of a core the agent takes in that many seconds of doing nothing. Ends
with a JSON line.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

from agent.cache import default_cache_root
from agent.shell import run_verb
from coordinator.cluster import Cluster
from kernels.errors import HeadwiseError
from tools.resident import Resident, cpu_s, read_resident
from weights.demo import demo_path

__all__ = ["AgentFigures", "add_arguments", "measure", "run"]

PROMPT = "Once upon a time"
CONTEXT_TOKENS = 256
SHOWN = 12


class AgentFigures(NamedTuple):
    """What was found: `idle_cores` before and after the tokens, in cores; None if not asked."""

    resident: Resident
    n_tokens: int
    idle_cores: tuple[float, float] | None


def measure(model: Path, n_tokens: int, exact: bool = False, idle_s: float = 0.0) -> AgentFigures:
    """Have one local agent write n_tokens, in as many texts as they take, and look at it.

    Raises:
        HeadwiseError: the cluster does not come up.
    """
    with Cluster(model, local=1, exact=exact, context_tokens=CONTEXT_TOKENS) as cluster:
        (pid,) = cluster.local_pids.values()
        before = _idle_cores(pid, idle_s)
        n_written = 0
        while n_written < n_tokens:
            n_more = min(n_tokens - n_written, CONTEXT_TOKENS // 2)
            n_written += _write(cluster, n_more)
        after = _idle_cores(pid, idle_s)
        (agent,) = cluster.control.agents()
        if agent.ready is None:
            raise HeadwiseError(f"agent {agent.name} is {agent.state}: no figures without a plan")
        resident = read_resident(
            pid, (model, default_cache_root() / "models"), agent.ready.kv_pool_bytes
        )
    return AgentFigures(resident, n_written, (before, after) if idle_s else None)


def _write(cluster: Cluster, n_tokens: int) -> int:
    """Write one text; return its length, which is at least 1."""
    if cluster.tokenizer is not None:
        return sum(1 for _ in cluster.generate(PROMPT, max_tokens=n_tokens)) or 1
    return sum(1 for _ in cluster.generate(prompt_ids=[1, 2, 3], max_tokens=n_tokens)) or 1


def _idle_cores(pid: int, idle_s: float) -> float:
    """Return which share of a core a process takes over a time in which nothing is asked of it."""
    if not idle_s:
        return 0.0
    time.sleep(1.0)  # threads that have just worked watch for more for a moment
    started_s, used_s = time.monotonic(), cpu_s(pid)
    time.sleep(idle_s)
    return (cpu_s(pid) - used_s) / (time.monotonic() - started_s)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    parser.add_argument("-m", "--model", type=Path, help="model directory (default: the demo's)")
    parser.add_argument("-n", "--tokens", type=int, default=200)
    parser.add_argument("--exact", action="store_true", help="f32 activations and KV")
    parser.add_argument("--idle", type=float, default=0.0, metavar="SECONDS")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark and print its figures."""
    figures = measure(args.model or demo_path(), args.tokens, args.exact, args.idle)
    r = figures.resident
    print(
        f"agent after {figures.n_tokens} tokens: {_mb(r.own_bytes)} of its own; resident "
        f"{_mb(r.total_bytes)}, weights {_mb(r.weights_bytes)}, KV pool {_mb(r.kv_bytes)}"
    )
    for name, n_bytes in list(r.by_name.items())[:SHOWN]:
        print(f"{_mb(n_bytes):>10}  {name}")
    rest = list(r.by_name.values())[SHOWN:]
    print(f"{_mb(sum(rest)):>10}  {len(rest)} others")
    if figures.idle_cores:
        print("idle, share of a core: {:.2%} before, {:.2%} after".format(*figures.idle_cores))
    print(json.dumps({**r._asdict(), "own_bytes": r.own_bytes, "idle": figures.idle_cores}))
    return 0


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(run_verb("bench_memory", "Memory of one agent.", (add_arguments, run)))
