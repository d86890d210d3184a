"""What measuring tools share: which model they take, and where processes leave their logs."""

import argparse
import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from weights.convert import convert_random

__all__ = ["Scratch", "add_model_arguments", "scratch"]


class Scratch(NamedTuple):
    """A folder of its own for one measurement, and the model in use."""

    root: Path
    model: Path


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --shape, --model, --dtype and --keep."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--shape", type=Path, metavar="FILE", help="config.json: random weights")
    what.add_argument("-m", "--model", type=Path, help="model directory")
    parser.add_argument(
        "--dtype", choices=["f32", "f16", "q8", "q4"], default="q8", help="with --shape (q8)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the processes' logs there")


@contextlib.contextmanager
def scratch(args: argparse.Namespace) -> Iterator[Scratch]:
    """Make a folder and, from --shape, a random model in it; in the end keep logs that are wanted.

    SIGTERM and Ctrl-C unwind, also in background jobs of a shell, which ignore the latter.

    Raises:
        HeadwiseError: the shape cannot be used.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # Short: the coordinator's admin socket lies below, and its path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hw-", dir="/tmp") as folder:
        root = Path(folder)
        model = args.model.resolve() if args.model else root / "model"
        if args.shape:
            convert_random(args.shape, model, args.dtype, seed=1)
        try:
            yield Scratch(root, model)
        finally:
            if args.keep is not None:
                args.keep.mkdir(parents=True, exist_ok=True)
                for log in root.glob("*.log"):
                    shutil.copy(log, args.keep)
