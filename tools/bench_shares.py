"""What a part of every layer costs a byte, next to the whole: placements should not matter.

`python -m tools.bench_shares --shape CONFIG.json` runs decode steps, phase by phase, of members
that hold all atoms of every layer, a half and a third of them, neighbours or scattered ones, by
turns in one process. Prints medians, and a last line of JSON.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from agent.ids import KvId
from agent.kv_ops import KvOp, KvOpCode
from agent.member import Member, make_member
from agent.resources import usable_cores
from agent.share import AtomRange, LayerShare
from agent.shell import run_verb
from kernels.pool import Pool
from tools.bench_model import Setup, assignment_of
from weights.manifest import Manifest
from weights.random_model import random_manifest, random_weights

__all__ = ["Share", "add_arguments", "run", "shares"]

CONTEXT = KvId(1)


class Share(NamedTuple):
    """Which atoms of every layer a member holds."""

    name: str
    head_groups: tuple[int, ...]
    columns: tuple[int, ...]

    def layer(self, number: int) -> LayerShare:
        """Return the share of one layer."""
        groups, columns = (
            tuple(AtomRange(i, 1) for i in atoms) for atoms in (self.head_groups, self.columns)
        )
        return LayerShare(number, groups, columns)


class Result(msgspec.Struct, frozen=True):
    """Medians of one share; `ratio` is its time a byte over that of all atoms, per repeat."""

    share: str
    dtype: str
    threads: int
    depth: int
    ms: float
    read_bytes: int
    gb_per_s: float
    ratio: float


def shares(n_groups: int, n_columns: int) -> list[Share]:
    """Return the whole, then halves and thirds, at least one atom of each class."""
    found = [Share("all", tuple(range(n_groups)), tuple(range(n_columns)))]
    for parts in (2, 3):
        n_g, n_c = max(1, n_groups // parts), max(1, n_columns // parts)
        found.append(Share(f"1/{parts} neighbours", tuple(range(n_g)), tuple(range(n_c))))
        found.append(
            Share(
                f"1/{parts} scattered",
                tuple(range(0, n_groups, parts))[:n_g],
                tuple(range(parts - 1, n_columns, parts)) or (0,),
            )
        )
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--shape", type=Path, required=True, metavar="FILE", help="config.json")
    parser.add_argument("--dtype", choices=("f32", "f16", "q8", "q4"), default="q8")
    parser.add_argument("-t", "--threads", type=int, default=usable_cores(), metavar="N")
    parser.add_argument("-d", "--depth", type=int, default=256, metavar="N")
    parser.add_argument("-n", "--steps", type=int, default=8, metavar="N", help="of one repeat")
    parser.add_argument("-r", "--repetitions", type=int, default=7, metavar="N")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    manifest = random_manifest(args.shape, args.dtype)
    store, pool = random_weights(manifest), Pool(args.threads)
    setup = Setup(1, args.depth + 64, exact=False)
    geometry = manifest.geometry
    steps = [
        _Step(manifest, store, pool, setup, share, args.depth)
        for share in shares(geometry.n_kv_heads, geometry.n_column_atoms)
    ]
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(args.repetitions):
        for step, taken in zip(steps, times, strict=True):
            step.run()
            taken.append(min(step.run() for _ in range(args.steps)))
    pool.close()
    results = [
        _result(step, taken, steps[0], times[0], args)
        for step, taken in zip(steps, times, strict=True)
    ]
    for r in results:
        print(
            f"{r.share:16} {r.dtype} {r.threads} threads, depth {r.depth}: {r.ms:8.2f} ms "
            f"{r.gb_per_s:6.2f} GB/s, time a byte {r.ratio:.3f} of all atoms'"
        )
    print(msgspec.json.encode({"results": results}).decode())
    return 0


def _result(
    step: "_Step", times: list[float], whole: "_Step", whole_times: list[float],
    args: argparse.Namespace,
) -> Result:  # fmt: skip
    pairs = zip(times, whole_times, strict=True)
    ratios = [a / step.read_bytes / (b / whole.read_bytes) for a, b in pairs]
    median_s = statistics.median(times)
    return Result(
        share=step.name,
        dtype=args.dtype,
        threads=args.threads,
        depth=args.depth,
        ms=1e3 * median_s,
        read_bytes=step.read_bytes,
        gb_per_s=step.read_bytes / median_s / 1e9,
        ratio=statistics.median(ratios),
    )


class _Step:
    """One member with a filled context, and its decode step."""

    def __init__(
        self,
        manifest: Manifest,
        store: npt.NDArray[np.uint8],
        pool: Pool,
        setup: Setup,
        share: Share,
        depth: int,
    ) -> None:
        g = manifest.geometry
        layers = tuple(share.layer(i) for i in range(g.n_layers))
        member: Member = make_member(assignment_of(setup, layers, vocab=()), manifest, store, pool)
        self.name = share.name
        atoms_bytes = (
            len(share.head_groups) * g.head_group_bytes + len(share.columns) * g.column_bytes
        )
        kv_bytes = 2 * len(share.head_groups) * (depth + 1) * g.head_dim * 2
        self.read_bytes = g.n_layers * (atoms_bytes + kv_bytes)
        self._kernels, self._n_layers = member.kernels, g.n_layers
        member.kv.apply([KvOp(KvOpCode.OPEN, CONTEXT, setup.context_tokens)])
        rows = np.full((depth + 1, 2), CONTEXT, np.uint32)
        rows[:, 1] = np.arange(depth + 1)
        slots = np.zeros(depth + 1, np.int32)
        member.kv.prepare(rows, slots)
        self._row = slots[:1].copy(), np.array([depth], np.int32)
        self._x = np.random.default_rng(1).standard_normal((1, g.hidden_size), np.float32)
        self._out = np.zeros_like(self._x)

    def run(self) -> float:
        """Return the seconds of one step's kernels, without the work between phases."""
        kernels = self._kernels
        kernels.begin(*self._row)
        started_s = time.perf_counter()
        for layer in range(self._n_layers):
            kernels.attention(layer, self._x, self._out)
            kernels.mlp(layer, self._x, self._out)
        return time.perf_counter() - started_s


if __name__ == "__main__":
    verb = (add_arguments, run)
    sys.exit(run_verb("bench_shares", "Cost a byte of parts of a model.", verb))
