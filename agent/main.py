"""`headwise agent`: one board joins a cluster."""

import argparse
import logging
import os
import random
import secrets
import signal
import socket
import sys
from pathlib import Path

from agent.address import Address, check_name, is_loopback, parse_address
from agent.cache import default_cache_root
from agent.compiler import open_images
from agent.emulation import FILE_VARIABLE, Emulation, parse_rate
from agent.ids import AgentName, InstanceId
from agent.join_file import JoinInfo, read_join_fd, read_join_file
from agent.loader import LoaderOptions
from agent.memory import available_memory_bytes
from agent.messages import Hello
from agent.resources import (
    check_this_platform,
    describe_machine,
    memory_budget_bytes,
    usable_cores,
)
from agent.session import Session
from agent.shell import parse_size_bytes, run_verb
from agent.threads import NamedThread
from agent.versions import our_versions
from kernels.entry import use_images
from kernels.errors import InputError

__all__ = ["add_arguments", "main", "run"]

log = logging.getLogger(__name__)

MAX_THREADS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add = parser.add_argument
    add("--join", type=Path, metavar="FILE", help="join file that `headwise keys add` made")
    add("--coordinator", metavar="tcp://HOST:PORT", help="whom to dial, if not as in the join file")
    add("--name", help="this agent's name; default: the join file's, else the host name")
    add("--threads", type=int, help="kernel threads; default: the usable cores")
    add("--memory", type=parse_size_bytes, metavar="SIZE", help="most memory to offer, as 512M")
    add(
        "--model-dir", type=Path, action="append", default=[], metavar="DIR",
        help="model directory, or a directory of them, to map weights from; repeatable",
    )  # fmt: skip
    add("--cache-dir", type=Path, metavar="DIR", help="where pulled weights are kept")
    add(
        "--cache-limit", type=parse_size_bytes, metavar="SIZE",
        help="most disk for pulled weights, as 20G; models used longest ago are removed, then what "
        "no plan needs of the present one",
    )  # fmt: skip
    add(
        "--pin", action="store_true",
        help="keep the hot thread on a core of its own: faster, on a board that does little else",
    )  # fmt: skip
    add(
        "--warm", action="store_true",
        help="compile the kernels of every weight format for this machine and keep them, then "
        "end: for when it is installed",
    )  # fmt: skip
    add(
        "--emulate-bytes-per-s", type=parse_rate, metavar="N",
        help="be as slow as a board that reads N bytes of weights a second, as 2e9: for tests of a "
        f"cluster on one machine; a file named by {FILE_VARIABLE} changes it while the agent runs",
    )  # fmt: skip
    add(
        "--emulate-memory", type=parse_size_bytes, metavar="SIZE",
        help="offer just this much memory, as such a board would",
    )  # fmt: skip
    # The same as --join, through a pipe: for agents that a coordinator starts.
    add("--join-fd", type=int, metavar="N", help=argparse.SUPPRESS)
    parser.set_defaults(usage_error=parser.error)
    add("--leave-with-fd", type=int, metavar="N", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Serve until told to leave; returns the exit code.

    Raises:
        HeadwiseError: wrong arguments, or a machine that cannot be an agent.
    """
    check_this_platform()
    # Until the runtime takes over, imports and compilers hold nothing that must be put in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if args.leave_with_fd is not None:
        _leave_with(args.leave_with_fd)
    use_images(open_images())
    if args.warm:
        from agent.warm_all import warm_all

        warm_all()
        return 0
    join = _join_info(args)
    address = parse_address(args.coordinator or (join.coordinator if join else ""))
    name = _own_name(args.name, join)
    n_cores = usable_cores()
    n_threads = _check_threads(n_cores if args.threads is None else args.threads)
    if join is None:
        _check_is_local(address)
    # Takes a while to import: nobody should wait for it to learn of a typing error.
    from agent.runtime import Runtime
    from agent.speed import measure_bytes_per_s

    available_bytes = available_memory_bytes()
    asked_rate, asked_memory = args.emulate_bytes_per_s, args.emulate_memory
    emulation = Emulation.of_options(asked_rate, asked_memory, available_bytes)
    bytes_per_s = asked_rate or measure_bytes_per_s(n_threads)
    memory_bytes = asked_memory or memory_budget_bytes(available_bytes, args.memory)
    hello = Hello(
        name, InstanceId(secrets.token_hex(8)), our_versions(), n_cores, n_threads, memory_bytes,
        bytes_per_s, describe_machine(),
    )  # fmt: skip
    cache_root = args.cache_dir or default_cache_root()
    curve = join.curve if join else None
    options = LoaderOptions(
        tuple(args.model_dir), cache_root, memory_bytes, n_threads, curve, args.cache_limit
    )
    log.info("agent=%s memory_bytes=%d bytes_per_s=%.3g", name, memory_bytes, bytes_per_s)
    session = Session(hello, str(address), random.Random())
    ended = Runtime(hello, address, options, session, args.pin, curve, emulation).run()
    log.info("agent=%s ends: %s", name, ended.reason)
    if ended.code:
        print(f"error: {ended.reason}", file=sys.stderr)
    if not ended.clean:
        # A thread is inside a kernel or a compiler. Nothing that it may be writing is harmed by
        # a torn end (see `cache`), so the process ends without it.
        sys.stderr.flush()
        os._exit(ended.code)
    return ended.code


def _join_info(args: argparse.Namespace) -> JoinInfo | None:
    if args.join_fd is not None:
        return read_join_fd(args.join_fd)
    if args.join is not None:
        return read_join_file(args.join)
    if args.coordinator is None:
        args.usage_error("the following arguments are required: --coordinator or --join")
    return None


def _own_name(asked: str | None, join: JoinInfo | None) -> AgentName:
    if join is None:
        return check_name(asked or socket.gethostname().split(".")[0])
    if asked not in (None, join.name):
        raise InputError(
            f"--name {asked!r}, but the join file is that of agent {join.name!r}; leave --name "
            f"out, or make another file: headwise keys add {asked}"
        )
    return join.name


def _check_is_local(address: Address) -> None:
    if not is_loopback(address.host):
        raise InputError(
            f"{address} is another machine, and links to it need keys: run `headwise keys add "
            f"NAME` on the coordinator and start this agent with --join NAME.join"
        )


def _check_threads(n_threads: int) -> int:
    if not 1 <= n_threads <= MAX_THREADS:
        raise InputError(f"--threads {n_threads}; 1 to {MAX_THREADS} are possible")
    return n_threads


def _leave_with(fd: int) -> None:
    """End this process when the pipe `fd` closes: whoever started it has died."""
    try:
        os.fstat(fd)
    except OSError as e:
        raise InputError(f"--leave-with-fd {fd} is no open file ({e.strerror})") from e

    def watch() -> None:
        while True:
            try:
                if not os.read(fd, 1):
                    os._exit(0)
            except OSError:
                os._exit(0)

    NamedThread(watch, "leave").start()


def main() -> int:
    """Run the verb as a script."""
    return run_verb("headwise agent", "Join a cluster with this board.", (add_arguments, run))
