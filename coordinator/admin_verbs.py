"""The verbs `drain`, `cordon` and `stop`: wishes to the coordinator that runs on this machine."""

import argparse
import sys
import time

from agent.address import check_name
from agent.shell import Verb
from coordinator.admin_client import find_coordinator
from coordinator.admin_messages import Cordon, Done, Drain, Notice, Stop
from kernels.errors import RemoteError

__all__ = ["VERBS", "add_port_argument"]

STOP_S = 20.0


def add_port_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which coordinator is meant."""
    parser.add_argument(
        "--port", type=int, help="the coordinator's port (default: 7070, or the only one running)"
    )


def _add_drain_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headwise drain`, `cordon` and what undoes them."""
    parser.add_argument("name", metavar="NAME", help="the agent, as `headwise status` shows it")
    add_port_argument(parser)


def _add_stop_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option of `headwise stop`."""
    add_port_argument(parser)


def _drain(args: argparse.Namespace) -> int:
    """Wait until an agent has no work any more.

    Raises:
        HeadwiseError: no such agent, no coordinator, or it could not be freed.
    """
    return _wish(args, Drain(check_name(args.name)))


def _cordon(args: argparse.Namespace) -> int:
    """Leave an agent what it has and give it nothing new.

    Raises:
        HeadwiseError: no such agent, or no coordinator.
    """
    return _wish(args, Cordon(check_name(args.name)))


def _undrain(args: argparse.Namespace) -> int:
    """Let an agent have work again, whether it was drained or cordoned.

    Raises:
        HeadwiseError: no such agent, or no coordinator.
    """
    return _wish(args, Drain(check_name(args.name), on=False))


def _wish(args: argparse.Namespace, wish: Drain | Cordon) -> int:
    """Ask for something that may take a while, and say how it goes."""
    with find_coordinator(args.port) as client:
        for reply in client.ask(wish):
            if isinstance(reply, Notice):
                print(reply.text, file=sys.stderr, flush=True)
            elif isinstance(reply, Done):
                print(reply.text)
                return 0
    raise RemoteError("the coordinator has gone before it was done")


def _stop(args: argparse.Namespace) -> int:
    """End the coordinator and wait for its end.

    Raises:
        HeadwiseError: no coordinator, or it does not end.
    """
    with find_coordinator(args.port) as client:
        began_s = time.monotonic()
        client.answer(Stop())
        if not client.wait_closed(STOP_S):
            raise RemoteError(
                f"the coordinator on port {client.port} has not ended within "
                f"{time.monotonic() - began_s:.0f} s; look at its log"
            )
    print("the coordinator has stopped")
    return 0


VERBS: dict[str, Verb] = {
    "drain": (_add_drain_arguments, _drain),
    "undrain": (_add_drain_arguments, _undrain),
    "cordon": (_add_drain_arguments, _cordon),
    "uncordon": (_add_drain_arguments, _undrain),
    "stop": (_add_stop_arguments, _stop),
}
