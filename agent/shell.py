"""How every verb meets the shell: arguments, logging, errors and exit codes.

Users see `error: TEXT` on stderr and exit code 1 (2 for wrong usage, 130 after Ctrl-C), never a
traceback unless they pass -v.
"""

import argparse
import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence

from kernels.errors import HeadwiseError, UsageError

__all__ = ["Verb", "parse_size_bytes", "run_verb"]

AddArguments = Callable[[argparse.ArgumentParser], None]
Verb = tuple[AddArguments, Callable[[argparse.Namespace], int]]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def run_verb(prog: str, description: str, verb: Verb, argv: Sequence[str] | None = None) -> int:
    """Parse argv, run the verb and return the exit code.

    Args:
        prog: the command as the user typed it, for help texts.
        description: one sentence for `--help`.
        verb: (add_arguments, run).
        argv: arguments after the command; None takes sys.argv.
    """
    add_arguments, run = verb
    parser = argparse.ArgumentParser(prog=prog, description=description)
    add_arguments(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens; tracebacks")
    args = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shall not end the program.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = run(args)
        sys.stdout.flush()
    except HeadwiseError as e:
        if args.verbose:
            logging.getLogger(prog).exception("failed")
        print(f"error: {e}", file=sys.stderr)
        return 2 if isinstance(e, UsageError) else 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except OSError as e:
        if args.verbose:
            logging.getLogger(prog).exception("failed")
        return _on_os_error(e)
    return code


def _on_os_error(e: OSError) -> int:
    """Explain output that cannot be written; whoever closed our pipe needs no explanation."""
    # What could not be written shall not be tried again at exit.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(e, BrokenPipeError):
        print(f"error: cannot read or write: {e.strerror or e}", file=sys.stderr)
    return 1


def parse_size_bytes(text: str) -> int:
    """Parse `512M`, `1.5GiB`, `4096` into bytes; k, M, G and T are powers of 1024.

    Raises:
        argparse.ArgumentTypeError: not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or len(text) > 20:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 512M or 2G")
    power = " kmgt".index(match[2].lower() or " ")
    return int(float(match[1]) * 1024**power)
