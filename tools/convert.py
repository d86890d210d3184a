"""`headwise convert`: turn a Hugging Face checkpoint into a headwise model directory.

Also runs as a script: `python tools/convert.py SRC OUT --dtype q8`.
"""

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

__all__ = ["add_arguments", "main", "run"]

_BAR_CHARS = 30
_EXIT_SIGTERM = 128 + signal.SIGTERM


class ProgressLine:
    """Shows how far a conversion is: a bar on a terminal, else a line for every 10 %."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._last_shown = -1

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Show the state if it has changed visibly."""
        share = 100 * done_bytes // max(total_bytes, 1)
        if not self._is_terminal:
            share -= share % 10
        if share == self._last_shown:
            return
        self._last_shown = share
        text = f"{share:3d} % of {total_bytes / 1e6:.1f} MB"
        if self._is_terminal:
            bar = "#" * (_BAR_CHARS * share // 100)
            self._stream.write(f"\r[{bar:<{_BAR_CHARS}}] {text}")
            if share >= 100:
                self._stream.write("\n")
        else:
            self._stream.write(f"converting: {text}\n")
        self._stream.flush()


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give a whole number from 0 on")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("src", metavar="SRC", type=Path, help="Hugging Face checkpoint directory")
    parser.add_argument("out", metavar="OUT", type=Path, help="model directory to create")
    parser.add_argument(
        "--dtype",
        choices=("f32", "f16", "q8", "q4"),
        default="q8",
        help="how to store the matrices (default q8)",
    )
    parser.add_argument("--source", default="", help="where the weights come from, kept in OUT")
    parser.add_argument("--revision", default="", help="version of the source, kept in OUT")
    parser.add_argument("--licence", default="", help="licence of the weights, kept in OUT")
    parser.add_argument(
        "--random",
        metavar="SEED",
        type=_seed,
        help="for benchmarks: SRC is a config.json, the weights are random",
    )


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that nothing half-written stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(_EXIT_SIGTERM)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run(args: argparse.Namespace) -> int:
    """Convert as the arguments say; returns the exit code.

    Raises:
        HeadwiseError: bad SRC, OUT exists, disk full; nothing is left behind.
    """
    # Imported here so that `headwise --help` stays fast.
    from weights.convert import Provenance, convert, convert_random

    progress = ProgressLine(sys.stderr)
    with _sigterm_as_exit():
        if args.random is not None:
            manifest = convert_random(args.src, args.out, args.dtype, args.random, progress)
        else:
            provenance = Provenance(args.source, args.revision, args.licence)
            manifest = convert(args.src, args.out, args.dtype, provenance, progress)
    print(
        f"{args.out}: {manifest.config.family}, {manifest.dtype}, "
        f"{manifest.weights_bytes / 1e6:.1f} MB, model {manifest.model_id}"
    )
    if args.random is None and "tokenizer.json" not in manifest.files:
        print("note: SRC has no tokenizer.json, so prompts need --prompt-ids", file=sys.stderr)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the verb on its own; returns the exit code."""
    from kernels.errors import HeadwiseError

    parser = argparse.ArgumentParser("convert", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except HeadwiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted, nothing was left behind", file=sys.stderr)
        return 130


if __name__ == "__main__":
    # As a script, Python looks for packages in tools/; they are one folder up.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(main())
