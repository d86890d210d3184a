"""What one local agent adds to a token, over calling the kernels in this process.

`python tools/bench_local.py --shape ../shared/models/configs/tinyllama_1b_chat_v1.0.json` makes a
random q8 model of that shape, lets one local agent generate, and after each few of its tokens runs
the same ones through the same kernels here. Prints medians and a final JSON line.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agent.ids import Epoch, KvId, RunId
from agent.kv_ops import KvOp, KvOpCode
from agent.member import Member, make_member
from agent.shell import run_verb
from coordinator.assign import assignments
from coordinator.cluster import Cluster
from coordinator.results import Token
from kernels.errors import InputError
from kernels.pool import Pool
from kernels.vocab import top_of_row
from weights.convert import convert_random

__all__ = ["add_arguments", "run"]

CONTEXT_TOKENS = 512


class InProcess:
    """The kernels of a plan's only member, called directly."""

    def __init__(self, cluster: Cluster, n_threads: int) -> None:
        assert cluster.plan is not None
        directory = cluster.directory
        told = assignments(
            cluster.plan, RunId(1), Epoch(1), manifest_bytes=1, context_tokens=CONTEXT_TOKENS,
            kv_tokens=CONTEXT_TOKENS, n_contexts=1, max_rows=1,
        )  # fmt: skip
        (assignment,) = told.values()
        self._pool = Pool(n_threads)
        self._member: Member = make_member(
            assignment, directory.manifest, directory.weights, self._pool
        )
        self._directory = directory
        self._x = np.zeros((1, directory.config.hidden_size), np.float32)
        self._logits = np.zeros((1, directory.config.vocab_size), np.float32)
        self._ids, self._best = np.zeros(1, np.uint32), np.zeros(1, np.float32)
        self._total = np.zeros(1)
        self._slots = np.zeros(1, np.int32)
        self._member.kv.apply([KvOp(KvOpCode.OPEN, KvId(1), CONTEXT_TOKENS)])

    def token_s(self, token_id: int, pos: int) -> float:
        """Run one token at a position and return the seconds spent in kernels."""
        kernels = self._member.kernels
        self._directory.embedding_row(token_id, self._x[0])
        self._member.kv.prepare(np.array([[1, pos]], np.uint32), self._slots)
        positions = np.array([pos], np.int32)
        started_s = time.perf_counter()
        kernels.begin(self._slots, positions)
        kernels.run_all(self._x, self._logits)
        ids = self._member.vocab_ids
        top_of_row(self._logits[0], ids, 1, 1.0, self._total, self._ids, self._best)
        return time.perf_counter() - started_s

    def close(self) -> None:
        """End the worker threads."""
        self._pool.close()


def measure(model: Path, n_tokens: int, turn_tokens: int) -> dict[str, float]:
    """Alternate turn_tokens tokens between agent and this process; return medians in seconds.

    The first token of each turn is not counted: threads that have rested come back for it.
    """
    agent_s: list[list[float]] = []
    inside_s: list[list[float]] = []
    with Cluster(model, local=1, context_tokens=CONTEXT_TOKENS) as cluster:
        n_threads = cluster.local_threads
        inside = InProcess(cluster, n_threads)
        prompt = [1, 2, 3, 4]
        generation = cluster.generate(prompt_ids=prompt, max_tokens=n_tokens)
        for pos, token_id in enumerate(prompt[:-1]):
            inside.token_s(token_id, pos)
        previous, pos = prompt[-1], len(prompt) - 1
        while len(turn := _turn(generation, turn_tokens)) == turn_tokens:
            agent_s.append([s for _, s in turn])
            inputs = [previous, *(id for id, _ in turn)]
            inside_s.append([inside.token_s(id, pos + i) for i, id in enumerate(inputs[:-1])])
            previous, pos = inputs[-1], pos + turn_tokens
        inside.close()
    n_rested = min(1, turn_tokens - 1)
    medians = [
        (statistics.median(a[n_rested:]), statistics.median(b[n_rested:]))
        for a, b in zip(agent_s[1:], inside_s[1:], strict=True)  # the first one has the prefill
    ]
    return {
        "threads": n_threads,
        "tokens": len(medians) * turn_tokens,
        "turn_tokens": turn_tokens,
        "agent_s": statistics.median(a for a, _ in medians),
        "in_process_s": statistics.median(b for _, b in medians),
        "added_s": statistics.median(a - b for a, b in medians),
    }


def _turn(generation: Iterator[Token], n_tokens: int) -> list[tuple[int, float]]:
    """Return the next tokens, and how long each took; fewer at the end of the text."""
    found: list[tuple[int, float]] = []
    while len(found) < n_tokens:
        started_s = time.perf_counter()
        token = next(generation, None)
        if token is None or token.id is None:
            break
        found.append((token.id, time.perf_counter() - started_s))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    parser.add_argument("--shape", type=Path, required=True, help="config.json of a model")
    add = parser.add_argument
    add("-n", "--tokens", type=int, default=300)
    add("--turn", type=int, default=16, metavar="TOKENS", help="of each in a row (16)")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark and print its figures.

    Raises:
        InputError: too few tokens for two turns.
    """
    if args.turn < 1 or args.tokens < 3 * args.turn:
        raise InputError(
            f"--turn {args.turn} -n {args.tokens}; give three turns of at least 1 token"
        )
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        convert_random(args.shape, model, "q8", seed=1)
        r = measure(model, args.tokens, args.turn)
    print(
        f"{r['tokens']:.0f} tokens, {r['threads']:.0f} threads: agent {1e3 * r['agent_s']:.2f} ms, "
        f"in-process {1e3 * r['in_process_s']:.2f} ms, added {1e3 * r['added_s']:.2f} ms per token"
    )
    print(json.dumps(r))
    return 0


if __name__ == "__main__":
    sys.exit(run_verb("bench_local", "Cost of one local agent.", (add_arguments, run)))
