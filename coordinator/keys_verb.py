"""The `keys` verb: who may join this coordinator."""

import argparse
import datetime
import socket
import sys
from pathlib import Path

from agent.address import check_name, is_loopback, parse_address
from agent.curve import fingerprint, new_key_pair
from agent.join_file import JoinInfo, encode_join_info
from agent.private_files import write_new
from coordinator.keys import KeyStore, default_directory
from kernels.errors import InputError, ResourceError

__all__ = ["DEFAULT_PORT", "add_arguments", "run"]

DEFAULT_PORT = 7070


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be done with keys, and its options."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--keys", type=Path, metavar="DIR", help=f"key store (default {default_directory()})"
    )
    what.add_parser("init", parents=[where], help="make this coordinator's key pair, once")
    add = what.add_parser("add", parents=[where], help="make a join file for an agent")
    add.add_argument("name", metavar="NAME", help="how the agent is called from then on")
    add.add_argument(
        "--address", metavar="tcp://HOST:PORT",
        help=f"where the agent finds this coordinator (default: as before, or this host's name and "
        f"port {DEFAULT_PORT})",
    )  # fmt: skip
    add.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: NAME.join")
    add.add_argument(
        "--rotate",
        action="store_true",
        help="give an agent a new key; its old one is worth nothing",
    )
    what.add_parser("list", parents=[where], help="show who may join")
    revoke = what.add_parser("revoke", parents=[where], help="let an agent in no more")
    revoke.add_argument("name", metavar="NAME")


def run(args: argparse.Namespace) -> int:
    """Carry out what was asked and return the exit code.

    Raises:
        HeadwiseError: it cannot be done, in words for the user.
    """
    store = KeyStore(args.keys if args.keys is not None else default_directory())
    match args.what:
        case "init":
            public = store.init()
            print(f"keys in {store.directory}; this coordinator's: {fingerprint(public)}")
            print("next, for each agent: headwise keys add NAME", file=sys.stderr)
        case "add":
            path = args.output or Path(f"{check_name(args.name)}.join")
            _add(store, args.name, args.address, path, args.rotate)
        case "list":
            _list(store)
        case "revoke":
            store.revoke(args.name)
            print(f"{args.name} may join no more; a running coordinator ends its links at once")
    return 0


def _add(store: KeyStore, name: str, address: str | None, path: Path, rotate: bool) -> None:
    """Write a join file and let its key in; neither without the other."""
    server_key = store.pair().public
    former = store.check_new(name, rotate)
    if address is None:
        default = f"tcp://{socket.gethostname()}:{DEFAULT_PORT}"
        address = former.address if former and former.address else default
    parse_address(address)
    pair = new_key_pair()
    info = JoinInfo(check_name(name), address, server_key, pair.public, pair.secret)
    try:
        write_new(path, encode_join_info(info))
    except FileExistsError as e:
        raise InputError(
            f"{path} is there already and is not overwritten; remove it, or choose another "
            f"name with -o FILE"
        ) from e
    except OSError as e:
        raise ResourceError(f"cannot write {path} ({e.strerror}); choose another -o FILE") from e
    try:
        store.add(name, pair.public, address, rotate)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    print(f"{path}: {name}, key {fingerprint(pair.public)}, dials {address}")
    if is_loopback(parse_address(address).host):
        print("only agents on this machine find it there; else: --address", file=sys.stderr)
    print(
        f"copy it to the board over a way you trust (it holds a secret), then there: "
        f"headwise agent --join {path.name}",
        file=sys.stderr,
    )


def _list(store: KeyStore) -> None:
    if not store.exists():
        raise InputError(f"no keys in {store.directory}; make them with: headwise keys init")
    print(f"coordinator {fingerprint(store.pair().public)}")
    agents = store.agents()
    width = max([len(agent.name) for agent in agents] + [len("name")])
    print(f"{'name':<{width}}  {'fingerprint':<19}  added")
    for agent in agents:
        added = datetime.datetime.fromtimestamp(agent.added_s).astimezone()
        print(f"{agent.name:<{width}}  {fingerprint(agent.public)}  {added:%Y-%m-%d %H:%M}")
