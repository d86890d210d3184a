"""Texts from the coordinator that runs on this machine, for `headwise run`.

Without --local or --bind, `run` attaches where a coordinator runs; --attach insists on one, and
waits for one that is just starting.
"""

import argparse
import sys
from collections.abc import Iterator

from coordinator.admin_client import AdminClient, await_coordinator, find_coordinator
from coordinator.admin_messages import Began, Finished, Generate, Notice, Piece, Reply
from coordinator.admin_path import find_admin_path
from coordinator.plan import Plan
from coordinator.results import Result, Token
from kernels.errors import RemoteError, UsageError

__all__ = ["RemoteText", "add_attach_argument", "attach"]

# What only a cluster in this process can be told, and what it is when nobody tells it.
IN_PROCESS = {
    "model": None, "local": None, "bind": None, "min_agents": 1, "plan": None, "place": None,
    "ctx": None, "exact": False, "kv": None, "pin": False, "insecure": False, "keys": None,
}  # fmt: skip

# A coordinator loads compiled code and its model before it listens: some seconds on a board.
START_S = 30.0


def add_attach_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that insists on the running coordinator."""
    parser.add_argument(
        "--attach", type=int, nargs="?", const=0, metavar="PORT",
        help="use the coordinator that `headwise serve` runs on this machine, nothing else, and "
        "wait for it if it is just starting (default: use it if it runs, and neither --local nor "
        "--bind is given; else start an agent here)",
    )  # fmt: skip


def attach(args: argparse.Namespace) -> AdminClient | None:
    """Return a client of the running coordinator, or None if a cluster is to be started here.

    Raises:
        UsageError: an option that the running coordinator cannot be told by a client.
        HeadwiseError: --attach, and none runs.
    """
    given = [name for name, usual in IN_PROCESS.items() if getattr(args, name, usual) != usual]
    apart = args.local is not None or args.bind is not None
    if args.attach is None and (apart or find_admin_path(None) is None):
        return None
    if args.attach is None:
        client = find_coordinator(None)
    else:
        # Nobody shall wait to be told of an option that is wrong.
        client = await_coordinator(args.attach or None, 0.0 if given else min(args.wait_s, START_S))
    if given:
        option = given[0].replace("_", "-")
        remedy = "leave it out" if args.attach is not None else "leave it out, or add --local N"
        client.close()
        raise UsageError(
            f"--{option} is for a cluster of this command alone, but the coordinator on port "
            f"{client.port} is asked; {remedy}"
        )
    return client


class RemoteText:
    """A text that the running coordinator writes; tokens first, then a result.

    Waits until it begins; what keeps it waiting, and what it outlives, is told on stderr.

    Args:
        client: closed by its owner.
        ask: which text.

    Attributes:
        placement: the plan in force, as a table.
        has_text: whether the model has a tokenizer.
        plan: known at the end.

    Raises:
        RemoteError: it cannot be written.
    """

    def __init__(self, client: AdminClient, ask: Generate) -> None:
        self._client = client
        self._replies = client.ask(ask)
        self._result: Result | None = None
        self.plan: Plan | None = None
        began = self._next()
        while isinstance(began, Notice):
            print(began.text, file=sys.stderr, flush=True)
            began = self._next()
        if not isinstance(began, Began):
            raise RemoteError("the coordinator answers something else; is it another version?")
        self.placement, self.has_text = began.placement, began.has_text

    def __iter__(self) -> Iterator[Token]:
        while self._result is None:
            match self._next():
                case Piece(id, text):
                    yield Token(id, text)
                case Notice(text):
                    print(text, file=sys.stderr, flush=True)
                case Finished(_, result, plan):
                    self._result, self.plan = result, plan

    def close(self) -> None:
        """End the text, if it is still being written."""
        self._client.close()

    def result(self) -> Result:
        """Return what was written, once the iterator is exhausted."""
        assert self._result is not None
        return self._result

    def _next(self) -> Reply:
        reply = next(self._replies, None)
        if reply is None:
            raise RemoteError(
                f"the coordinator on port {self._client.port} has gone while it was writing; "
                f"start the request again once it is back"
            )
        return reply
