"""What busy processes of others cost a token: fair shares double it where there is one a core.

`python -m tools.bench_busy --shape CONFIG.json` decodes with a random model of that shape, by turns
undisturbed and beside busy processes. Prints medians, and a last line of JSON.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from agent.resources import usable_cores
from agent.shell import run_verb
from kernels.pool import Pool
from tools.bench_model import BenchModel, Setup
from weights.random_model import random_manifest, random_weights

__all__ = ["add_arguments", "busy", "run"]

_SETTLE_S = 0.5
# Ends by itself once whoever started it is gone.
_BUSY = "import os; started_by = os.getppid()\nwhile os.getppid() == started_by: pass"


@contextlib.contextmanager
def busy(n_processes: int) -> Iterator[list[int]]:
    """Keep processes busy meanwhile, on any core; gives their ids."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        command = [sys.executable, "-S", "-c", _BUSY]
        running.extend(subprocess.Popen(command) for _ in range(n_processes))
        yield [one.pid for one in running]
    finally:
        for one in running:
            one.kill()
        for one in running:
            one.wait()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    add = parser.add_argument
    add("--shape", type=Path, required=True, help="config.json of a model")
    add("--dtype", default="q4", help="one of f32, f16, q8, q4 (q4)")
    add("-t", "--threads", type=int, default=usable_cores(), help="(all cores)")
    add("-d", "--depth", type=int, default=256, help="tokens that the context holds before (256)")
    add("-n", "--tokens", type=int, default=16, help="of each turn (16)")
    add("-r", "--repetitions", type=int, default=9, help="turns (9)")
    add("--busy", type=int, default=os.cpu_count() or 1, help="processes (one a core)")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark and print its figures."""
    manifest = random_manifest(args.shape, args.dtype)
    setup = Setup(64, args.depth + args.tokens, exact=False)
    pool = Pool(args.threads)
    model = BenchModel(manifest, random_weights(manifest), setup, pool)
    model.decode_s(args.depth, args.tokens)
    alone_s, beside_s = [], []
    for _ in range(args.repetitions):
        alone_s.append(model.decode_s(args.depth, args.tokens) / args.tokens)
        with busy(args.busy):
            time.sleep(_SETTLE_S)  # until the system has spread them
            beside_s.append(model.decode_s(args.depth, args.tokens) / args.tokens)
    pool.close()
    ratios = [b / a for a, b in zip(alone_s, beside_s, strict=True)]
    median = statistics.median(ratios)
    result = {
        "dtype": args.dtype,
        "threads": args.threads,
        "busy": args.busy,
        "alone_s": statistics.median(alone_s),
        "beside_s": statistics.median(beside_s),
        "ratio": median,
    }
    print(
        f"{args.dtype}, {args.threads} threads: {1e3 * result['alone_s']:.2f} ms a token alone,"
        f" {1e3 * result['beside_s']:.2f} ms beside {args.busy} busy processes: {median:.2f} times"
        f" ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    verb = (add_arguments, run)
    sys.exit(run_verb("bench_busy", "Cost of other processes.", verb))
