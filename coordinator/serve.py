"""The `serve` verb: a coordinator that stays, while agents and clients come and go.

Agents dial PORT (control), PORT + 1 (hot) and PORT + 2 (bulk); `run`, `status`, `plan`, `drain`,
`cordon` and `stop` on the same machine use the admin socket.
"""

import argparse
import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, get_args

from agent.address import Address, resolve
from agent.ids import AgentName
from agent.share import KV_HELP, KvFormat
from coordinator.admin import AdminServer, refuse_second
from coordinator.admin_path import DEFAULT_PORT, admin_path, make_admin_directory
from coordinator.cluster import Cluster
from coordinator.cluster_args import add_mirror_argument
from coordinator.keys import known_names
from coordinator.logs import set_up
from coordinator.plan import MAX_MEMBERS
from coordinator.service import Service
from kernels.errors import HeadwiseError, InputError, RemoteError

__all__ = ["add_arguments", "run"]

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headwise serve`."""
    parser.add_argument("-m", "--model", type=Path, help="model directory (default: the demo)")
    group = parser.add_argument_group("agents")
    group.add_argument(
        "--host", default="127.0.0.1",
        help="address or host name of this machine to listen at, IPv4 or IPv6 (127.0.0.1)",
    )  # fmt: skip
    group.add_argument(
        "--port", type=int, default=DEFAULT_PORT,
        help=f"agents dial PORT and the next two ({DEFAULT_PORT})",
    )  # fmt: skip
    group.add_argument("--min-agents", type=int, default=1, help="agents to plan with at least")
    group.add_argument(
        "--place", choices=["auto", "spread"], default="auto",
        help="auto (default): the subset of agents predicted fastest; spread: all",
    )  # fmt: skip
    group.add_argument(
        "--keys", type=Path, metavar="DIR", help="key store (default: ~/.config/headwise/keys)"
    )
    group.add_argument(
        "--insecure", action="store_true", help="no keys: links are neither encrypted nor checked"
    )
    group.add_argument("-c", "--ctx", type=int, metavar="TOKENS", help="longest context")
    group.add_argument(
        "--exact", action="store_true",
        help="f32 on the wire and in the KV cache: words do not depend on placement",
    )  # fmt: skip
    group.add_argument("--kv", choices=get_args(KvFormat), help=KV_HELP)
    add_mirror_argument(group)
    parser.add_argument("--log-json", action="store_true", help="log one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, SIGTERM or `headwise stop`; returns the exit code.

    Raises:
        HeadwiseError: whatever keeps the coordinator from coming up, in words for its user.
    """
    if not 1 <= args.min_agents <= MAX_MEMBERS:
        raise InputError(f"--min-agents {args.min_agents}; 1 to {MAX_MEMBERS} are possible")
    bind = _endpoint(args.host, args.port)
    path = admin_path(args.port)
    make_admin_directory(path)
    # Before the ports are bound: that they are taken would be the less helpful message.
    refuse_second(path)
    set_up(args.log_json, logging.DEBUG if args.verbose else logging.INFO)
    _allow_files()
    # Until the service takes over, SIGTERM unwinds like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Cluster(**_cluster_options(args, bind)) as cluster:
        service = Service(
            cluster,
            args.min_agents,
            _known_names(args),
            ask_stop=lambda: os.kill(os.getpid(), signal.SIGTERM),
        )
        server = AdminServer(path, service.desk)
        try:
            log.info("listening for agents at %s, for clients at %s", bind, path)
            with _stopped_by_signals(service):
                service.run()
        finally:
            server.close()
    log.info("ended")
    return 0


def _allow_files() -> None:
    """Raise the limit of open files as far as allowed: whoever reaches a port can use them up."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _endpoint(host: str, port: int) -> str:
    """Return the control endpoint for a host and a port, brackets around an IPv6 address.

    Raises:
        InputError: a host nobody knows, or a port that leaves no room for the next two.
    """
    if not 1 <= port <= 65533:
        raise InputError(f"--port {port}; ports 1 to 65533 leave room for the next two")
    bare = host.removeprefix("[").removesuffix("]")
    if bare == "*":
        return f"tcp://*:{port}"
    try:
        # libzmq binds numbers only.
        return str(resolve(Address(bare, port), attempt=0))
    except RemoteError as e:
        raise InputError(f"--host {host}: {e}; give an address of this machine") from e


def _known_names(args: argparse.Namespace) -> Callable[[], list[AgentName]]:
    """Return a function that says which agents have a key; none do without a key store."""

    def names() -> list[AgentName]:
        if args.insecure:
            return []
        try:
            return known_names(args.keys)
        except HeadwiseError:
            # Only a help for whoever waits; the gate has said it already.
            return []

    return names


def _cluster_options(args: argparse.Namespace, bind: str) -> dict[str, Any]:
    return {
        "model": args.model,
        "bind": bind,
        "min_agents": 0,
        "place": args.place,
        "exact": args.exact,
        "kv": args.kv,
        "context_tokens": args.ctx,
        "mirror": args.mirror,
        "insecure": args.insecure,
        "keys": args.keys,
    }


@contextlib.contextmanager
def _stopped_by_signals(service: Service) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the service in good order; a second one ends it at once."""
    numbers = (signal.SIGTERM, signal.SIGINT)

    def on_signal(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.default_int_handler)
        log.info("stopping: %s", signal.Signals(number).name)
        service.stop()

    before = [signal.signal(number, on_signal) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
