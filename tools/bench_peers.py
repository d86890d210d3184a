"""Our kernels next to llama.cpp and torch: same shape, threads and depths, repeat by repeat.

`python -m tools.bench_peers --shape config.json --dtype q8,q4 -t 1,2,3 -d 256 -p 512 -n 32`
takes the options of `headwise bench` and prints its rows, each with the peer's figures. Each peer
is a process of its own with random weights of the shape, idle while others are timed. Of a
peer's settings the one with the best median counts; a ratio is the median of each repeat's.
"""

import argparse
import contextlib
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.resources import usable_cores
from agent.shell import run_verb
from kernels.errors import UsageError
from tools import bench
from tools.bandwidth import check_compiled, last_level_cache_bytes
from tools.bench_measure import Bench, Models, check_memory, open_bench, start_kernels
from tools.bench_model import Setup, weights_bytes
from tools.bench_rows import Case, Sample, check_fractions, csv_table
from tools.peer_child import Task, settle
from tools.peer_process import PEERS, Peer, model_bytes, shape_of, start_peer
from tools.peer_rows import PeerRow, Repeat, md_peer_table, peer_rows
from weights.checkpoint import read_json
from weights.config import ModelConfig
from weights.families import read_config
from weights.manifest import DType

__all__ = ["add_arguments", "main", "measure", "run"]

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headwise bench`, and which peers and where they live."""
    bench.add_arguments(parser)
    parser.add_argument(
        "--peers", type=_peers, metavar="LIST", default=("llama.cpp",),
        help=f"of {','.join(PEERS)} (default llama.cpp)",
    )  # fmt: skip
    parser.add_argument(
        "--peer-python", type=_peer_python, action="append", metavar="PEER=FILE", default=[],
        help="the Python that has a peer's packages (default: this one)",
    )  # fmt: skip
    parser.add_argument(
        "--directory", type=Path, default=None, metavar="DIR",
        help="where a peer's model is written while it loads (default: the system's for files)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code.

    Raises:
        HeadwiseError: wrong options, a peer that is missing or fails, or too little memory.
    """
    check_compiled()
    if args.shape is None:
        raise UsageError("peers run random weights: give --shape FILE, a config.json")
    if args.kv is not None:
        raise UsageError("peers keep f16, and f32 with --exact, as we do then; leave out --kv")
    dtypes: tuple[DType, ...] = args.dtype or ("q8",)
    peers = {dtype: _peers_of(dtype, args.peers) for dtype in dtypes}
    models = Models.random(args.shape, dtypes)
    config = read_config(read_json(args.shape), str(args.shape))
    cases = bench.make_cases(args.prompt_tokens, args.gen_tokens, dtypes, args.depth, args.threads)
    setup = Setup(args.rows, max(case.depth + case.n_tokens for case in cases), args.exact)
    cache_bytes = last_level_cache_bytes()
    for dtype in dtypes:
        peers_bytes = len(peers[dtype]) * model_bytes(config, dtype, setup.context_tokens)
        check_memory(_only(models, dtype), setup, args.threads, cache_bytes, peers_bytes)
    start = start_kernels(models, setup)
    said = sys.stdout if args.output == "md" else sys.stderr
    print(bench.start_line(start), file=said, flush=True)
    rows: list[PeerRow] = []
    about: dict[str, dict[str, str]] = {}
    # One format after the other: two models of each are what memory has to hold.
    for dtype in dtypes:
        mine = [case for case in cases if case.dtype == dtype]
        with contextlib.ExitStack() as stack:
            running = _start(stack, args, config, dtype, peers[dtype], setup)
            about.update({peer.name: peer.about for peer in running})
            ours = stack.enter_context(open_bench(_only(models, dtype), mine, setup, cache_bytes))
            repeats = measure(ours, running, mine, args.repetitions)
        n_bytes = weights_bytes(models.manifests[dtype])
        for case in mine:
            rows += peer_rows(case, repeats[case], n_bytes, cache_bytes)
    check_fractions(rows)
    fields = bench.run_fields(args, models, setup, start, cache_bytes)
    _show(args.output, {**fields, "peers": about}, rows)
    return 0


def measure(
    ours: Bench, peers: Sequence[Peer], cases: Sequence[Case], n_repeats: int
) -> dict[Case, list[Repeat]]:
    """Measure every case n_repeats times, all sides one right after the other.

    Raises:
        HeadwiseError: a side failed.
    """
    repeats: dict[Case, list[Repeat]] = {case: [] for case in cases}
    for i in range(n_repeats):
        # There and back, cases and sides: whatever drifts meets all alike.
        for case in cases if i % 2 == 0 else reversed(cases):
            repeat = _measure_once(ours, peers, case, backwards=i % 2 == 1)
            repeats[case].append(repeat)
            speeds = {" ".join(key): case.n_tokens / s for key, s in repeat.peers_s.items()}
            log.info(
                "repeat=%d of=%d %s tokens_per_s=%.2f read_bytes_per_s=%.3g %s", i + 1, n_repeats,
                case, case.n_tokens / repeat.ours.seconds, repeat.ours.read_bytes_per_s,
                ", ".join(f"{key}: {speed:.2f}" for key, speed in speeds.items()),
            )  # fmt: skip
    return repeats


def _measure_once(ours: Bench, peers: Sequence[Peer], case: Case, *, backwards: bool) -> Repeat:
    theirs = [(peer, key) for peer in peers for key in peer.settings]
    if backwards:
        peers_s = {key: peer.measure_s(key.setting, case) for peer, key in reversed(theirs)}
        return Repeat(_measure_ours(ours, case), peers_s)
    sample = _measure_ours(ours, case)
    return Repeat(sample, {key: peer.measure_s(key.setting, case) for peer, key in theirs})


def _measure_ours(ours: Bench, case: Case) -> Sample:
    sample = ours.sample(case)
    # As each peer does before it answers: nobody's threads spin while others are timed.
    settle()
    return sample


def _only(models: Models, dtype: DType) -> Models:
    return replace(models, manifests={dtype: models.manifests[dtype]})


def _peers_of(dtype: DType, names: Sequence[str]) -> list[str]:
    """Return the peers that have a format; raises UsageError if none has."""
    found = [name for name in names if dtype in PEERS[name][1]]
    if not found:
        formats = "; ".join(f"{name} has {', '.join(PEERS[name][1])}" for name in names)
        raise UsageError(f"nothing to compare {dtype} with: {formats}; ask for other --dtype")
    return found


def _start(
    stack: contextlib.ExitStack,
    args: argparse.Namespace,
    config: ModelConfig,
    dtype: DType,
    names: Sequence[str],
    setup: Setup,
) -> list[Peer]:
    """Start the peers, each with its model; they end with the stack."""
    directory = str((args.directory or Path(tempfile.gettempdir())).absolute())
    shape = shape_of(config)
    task = Task(shape, dtype, setup.context_tokens, setup.exact, directory, usable_cores())
    pythons = dict(args.peer_python)
    peers = []
    for name in names:
        log.info("starting peer=%s dtype=%s", name, dtype)
        starting = start_peer(name, pythons.get(name, sys.executable), task)
        peers.append(stack.enter_context(starting))
    return peers


def _show(output: str, fields: dict[str, Any], rows: list[PeerRow]) -> None:
    if output == "json":
        print(bench.json_line(fields, rows))
        return
    print({"md": md_peer_table, "csv": csv_table}[output](rows))
    if output == "md":
        for name, about in fields["peers"].items():
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in about.items()))


def _peers(text: str) -> tuple[str, ...]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in PEERS:
            raise argparse.ArgumentTypeError(
                f"{word[:40]!r} is no peer; there are {', '.join(PEERS)}"
            )
    return tuple(dict.fromkeys(words))


def _peer_python(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not PEER=FILE")
    _peers(name)
    return name.strip(), path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, as `headwise bench` does."""
    return run_verb("bench_peers", "Compare our kernels with others.", (add_arguments, run), argv)


if __name__ == "__main__":
    sys.exit(main())
