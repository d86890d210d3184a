"""Options that all settings of `headwise simulate` share, checked."""

import argparse
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from kernels.errors import UsageError

__all__ = ["FIRST_JUDGE", "add_shared", "check_range", "each", "save_plots"]

A = TypeVar("A")
B = TypeVar("B")

# Seeds below 1000 are for tests and for tuning; from here on they judge.
FIRST_JUDGE = 5000


def add_shared(parser: argparse.ArgumentParser, n_seeds: int) -> None:
    """Add seeds, processes and the directory of plots."""
    parser.add_argument(
        "--seeds", type=int, default=n_seeds, metavar="N", help=f"instances of each ({n_seeds})"
    )
    parser.add_argument(
        "--seed", type=int, default=FIRST_JUDGE, metavar="N",
        help=f"the first of them ({FIRST_JUDGE}); below 1000 are those used for tuning",
    )  # fmt: skip
    n_cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "-j", "--jobs", type=int, default=n_cores, help=f"processes ({n_cores}: as many as cores)"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write plots there, as SVG")


def check_range(args: argparse.Namespace, names: Iterable[str], low: float, high: float) -> None:
    """Check that numbers lie in (low, high].

    Raises:
        UsageError: one does not, or is no number; it says which.
    """
    for name in names:
        value = getattr(args, name)
        # Written so that NaN fails.
        if not low < value <= high:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} {value:g}; it must be above {low:g}, at most {high:g}")


def each(work: Callable[[A], B], items: Sequence[A], n_jobs: int) -> list[B]:
    """Return the work's results in the order of the items, from so many processes."""
    n_jobs = min(n_jobs, len(os.sched_getaffinity(0)), len(items))
    if n_jobs <= 1:
        return [work(item) for item in items]
    with multiprocessing.get_context("spawn").Pool(n_jobs) as pool:
        return pool.map(work, items, chunksize=1)


def save_plots(directory: Path, plots: Mapping[str, str]) -> None:
    """Write plots by name.

    Raises:
        UsageError: the directory cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in plots.items():
            (directory / f"{name}.svg").write_text(text, encoding="utf-8")
    except OSError as e:
        raise UsageError(f"--plots {directory}: {e.strerror}; name a directory of yours") from e
