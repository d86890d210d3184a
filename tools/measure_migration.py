"""What the reader of a stream notices when head groups move, and how fast their rows are copied.

`python tools/measure_migration.py --shape ../shared/models/configs/tinyllama_1b_chat_v1.0.json`
makes a random q8 model of that shape and a lab of boards on 1 Gbit cables, reads a prompt of 990
tokens and goes on writing, while one head group of every layer moves from one board to another,
there and back. Prints the longest gap between two tokens of each move, and how fast keys and
values were copied while no token was written. All goes through the coordinator (star): boards
listen nowhere, which is checked in the middle of one more move, and with `--closed` a packet filter
drops what would open a connection to one of them. The last line is one JSON object; ends with 1 if
a text was not the same, a gap too long or copying too slow. Needs root.
"""

import argparse
import contextlib
import itertools
import json
import random
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.emulation import parse_rate
from agent.shell import run_verb
from coordinator.cluster import Cluster
from coordinator.migration_parts import move_parts
from coordinator.plan import Plan
from coordinator.planner.cost import kv_token_bytes
from kernels.errors import InputError, RemoteError
from tools.faults.here import cluster_here
from tools.faults.lab import goodput_bytes_per_s
from tools.faults.packet_filter import n_refused, refuse_connections
from tools.faults.scratch import add_model_arguments, scratch
from tools.migration.regrouped import regrouped
from tools.migration.stream import Copied, Moved, Stream

__all__ = ["add_arguments", "run"]

# The limits of issue 5: a gap, and the copy's part of the goodput when nothing else runs.
GAP_TOKENS, GAP_S, COPY_SHARE = 2.0, 0.020, 0.8
# Tokens before the first move and between two of them.
REST_TOKENS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the measurement."""
    add = parser.add_argument
    add_model_arguments(parser)
    add("--agents", type=int, default=2, help="boards (2)")
    add("--prompt-tokens", type=int, default=990, help="of the prompt (990)")
    add("-n", "--tokens", type=int, default=600, help="most tokens of the text (600)")
    add("--moves", type=int, default=4, help="while the text is written (4)")
    add("--copies", type=int, default=4, help="while it rests (4)")
    add("--bytes-per-s", type=parse_rate, help="rate of the boards (default: as this machine)")
    add("--closed", action="store_true", help="boards refuse connections; needs nft")
    add("--rate-mbit", type=float, default=1000.0, help="of the lab's cables (1000)")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 1 if a limit was not kept.

    Raises:
        HeadwiseError: it could not begin, or a migration did not succeed.
    """
    if args.agents < 2:
        raise InputError(f"--agents {args.agents}; heads move between two: give at least 2")
    with scratch(args) as (root, model), _cluster(args, model, root) as cluster:
        report = _measure(args, cluster)
    print(json.dumps(report))
    return int(not (report["equal"] and report["gaps_ok"] and report["copies_ok"]))


def _cluster(
    args: argparse.Namespace, model: Path, root: Path
) -> contextlib.AbstractContextManager[Cluster]:
    """Boards on hosts of their own, and a coordinator in this process on the first host."""
    rates = {f"board-{i + 1}": args.bytes_per_s for i in range(args.agents)}
    ctx = args.prompt_tokens + args.tokens
    return cluster_here(
        rates, model, root, f"{args.rate_mbit:g}mbit", place="spread", exact=True,
        context_tokens=ctx,
    )  # fmt: skip


def _measure(args: argparse.Namespace, cluster: Cluster) -> dict[str, object]:
    rng = random.Random(1)
    vocab_size = cluster.directory.config.vocab_size
    prompt = [rng.randrange(vocab_size) for _ in range(args.prompt_tokens)]
    assert cluster.plan is not None
    there, back = _plans(cluster.plan)
    hosts = [f"h{i + 2}" for i in range(args.agents)] if args.closed else []
    for host in hosts:
        refuse_connections(host)
    stream = Stream(cluster, prompt, args.tokens)
    stream.read(REST_TOKENS)
    moves: list[Moved] = []
    copies: list[tuple[Copied, float]] = []
    ways = itertools.cycle([there, back])
    for _ in range(args.moves):
        moves.append(stream.move(next(ways)))
        print(_move_line(moves[-1]), file=sys.stderr, flush=True)
        stream.read(REST_TOKENS)
    goodput = goodput_bytes_per_s(f"{args.rate_mbit:g}mbit")
    for _ in range(args.copies):
        plan = next(ways)
        n_bytes = _kv_bytes(cluster, plan, args.prompt_tokens + len(stream.ids))
        copied = stream.copy(plan)
        copies.append((copied, n_bytes / copied.copy_s / goodput))
        print(_copy_line(*copies[-1], n_bytes), file=sys.stderr, flush=True)
        stream.read(3)
    with ThreadPoolExecutor(1) as executor:
        listening = executor.submit(_listening, args.agents)
        stream.move(next(ways))
    stream.close()
    still = Stream(cluster, prompt, len(stream.ids))
    still.read(len(stream.ids))
    token_s = statistics.median(b - a for a, b in itertools.pairwise(still.times_s))
    return {
        "agents": args.agents,
        "context_tokens": args.prompt_tokens + REST_TOKENS,
        "rate_mbit": args.rate_mbit,
        "undisturbed_token_ms": 1e3 * token_s,
        "moves": [{k: round(v, 5) for k, v in move._asdict().items()} for move in moves],
        "longest_gap_ms": 1e3 * max((m.longest_gap_s for m in moves), default=0.0),
        "gaps_ok": all(m.longest_gap_s <= GAP_TOKENS * m.before_s + GAP_S for m in moves),
        "copies": [copied._asdict() | {"share": share} for copied, share in copies],
        "copy_share": statistics.median(s for _, s in copies) if copies else None,
        "copies_ok": not copies or statistics.median(s for _, s in copies) >= COPY_SHARE,
        "listening_at_boards": listening.result(),
        "refused_connections": sum(n_refused(host) for host in hosts) if hosts else None,
        "equal": still.ids == stream.ids,
        "n_tokens": len(stream.ids),
        "n_different_tokens": len(set(stream.ids)),
    }


def _plans(plan: Plan) -> tuple[Plan, Plan]:
    """Return the plan with a head group of each layer elsewhere, and the plan itself."""
    first, second = plan.members[:2]
    held = [sum(len(share.head_groups) for share in m.layers) for m in (first, second)]
    giver, taker = (first, second) if held[0] >= held[1] else (second, first)
    return regrouped(plan, giver.agent, taker.agent), plan


def _kv_bytes(cluster: Cluster, plan: Plan, n_tokens: int) -> int:
    """Return the bytes of keys and values that go from board to board."""
    assert cluster.plan is not None
    row_bytes = kv_token_bytes(cluster.directory.geometry, plan.kv)
    # The last token's row is not written before the next step.
    return move_parts(cluster.plan, plan).moved_groups() * (n_tokens - 1) * row_bytes


def _listening(n_agents: int) -> int:
    """Return how many sockets on the boards' hosts could be connected or written to."""
    n = 0
    for i in range(n_agents):
        words = ["ip", "netns", "exec", f"nlab-h{i + 2}", "ss", "-Hltun"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RemoteError(f"{' '.join(words)}: {done.stderr.strip()[-200:]}")
        n += len(done.stdout.splitlines())
    return n


def _move_line(m: Moved) -> str:
    return (
        f"move: longest gap {1e3 * m.longest_gap_s:.1f} ms, token {1e3 * m.before_s:.1f} ms before "
        f"and {1e3 * m.during_s:.1f} ms during it, {m.seconds:.2f} s, {m.n_tokens} tokens"
    )


def _copy_line(copied: Copied, share: float, n_bytes: int) -> str:
    return (
        f"copy: {n_bytes} bytes in {1e3 * copied.copy_s:.1f} ms, {100 * share:.0f} % of goodput; "
        f"ready after {1e3 * copied.prepare_s:.1f} ms"
    )


if __name__ == "__main__":
    sys.exit(run_verb("measure_migration", "What a migration costs.", (add_arguments, run)))
