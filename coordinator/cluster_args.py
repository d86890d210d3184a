"""Command-line options that several verbs share: which model, which agents, how exact."""

import argparse
from pathlib import Path
from typing import Any, get_args

from agent.share import KV_HELP, KvFormat
from coordinator.local import MAX_LOCAL_AGENTS
from coordinator.plan import MAX_MEMBERS, Plan, decode_plan
from kernels.errors import InputError, PlanError

__all__ = ["add_cluster_arguments", "add_mirror_argument", "cluster_options", "read_plan"]


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model runs where."""
    parser.add_argument("-m", "--model", type=Path, help="model directory (default: the demo)")
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--local", type=int, metavar="N", help="start N agents on this machine (default: 1)"
    )
    group.add_argument(
        "--bind", metavar="ENDPOINT",
        help="wait for agents that dial tcp://HOST:PORT; uses PORT and the next two",
    )  # fmt: skip
    group.add_argument("--min-agents", type=int, default=1, help="agents to wait for with --bind")
    group.add_argument("--wait-s", type=float, default=60.0, help="how long to wait for agents")
    group.add_argument(
        "--plan", type=Path, metavar="FILE", help="placement, as `plan --json` prints"
    )
    group.add_argument(
        "--place", choices=["auto", "spread"],
        help="auto: the subset of agents predicted fastest; spread: all (default with --local)",
    )  # fmt: skip
    group.add_argument("-c", "--ctx", type=int, metavar="TOKENS", help="longest context")
    group.add_argument(
        "--exact", action="store_true",
        help="f32 on the wire and in the KV cache: words do not depend on placement",
    )  # fmt: skip
    group.add_argument("--kv", choices=get_args(KvFormat), help=KV_HELP)
    add_mirror_argument(group)
    group.add_argument(
        "--pin", action="store_true",
        help="keep hot threads on cores of their own: faster, on a machine that does little else",
    )  # fmt: skip
    group.add_argument(
        "--insecure", action="store_true",
        help="--bind to a loopback address without keys, though there are some",
    )  # fmt: skip
    group.add_argument(
        "--keys", type=Path, metavar="DIR", help="key store for --bind (`headwise keys --help`)"
    )


def add_mirror_argument(group: argparse._ArgumentGroup) -> None:
    """Add the option that asks for a second copy of keys and values."""
    group.add_argument(
        "--mirror", action="store_true",
        help="keep a second copy of keys and values on other agents: a lost one costs a pause of "
        "one to two seconds instead of reading the whole text again",
    )  # fmt: skip


def cluster_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `Cluster` that the options ask for.

    Raises:
        InputError: a number out of range, or a plan file that is none.
    """
    if args.local is not None and not 1 <= args.local <= MAX_LOCAL_AGENTS:
        raise InputError(f"--local {args.local}; 1 to {MAX_LOCAL_AGENTS} are possible")
    if not 1 <= args.min_agents <= MAX_MEMBERS:
        raise InputError(f"--min-agents {args.min_agents}; 1 to {MAX_MEMBERS} are possible")
    local = args.local if args.local is not None else (0 if args.bind else 1)
    return {
        "model": args.model,
        "local": local,
        "bind": args.bind,
        "min_agents": args.min_agents,
        "wait_s": args.wait_s,
        "plan": None if args.plan is None else read_plan(args.plan),
        "place": args.place,
        "exact": args.exact,
        "kv": args.kv,
        "context_tokens": args.ctx,
        "mirror": args.mirror,
        "insecure": args.insecure,
        "keys": args.keys,
        "pin": args.pin,
        "verbose": args.verbose,
    }


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        PlanError: it cannot be read or is no plan.
    """
    try:
        return decode_plan(path.read_bytes())
    except OSError as e:
        raise PlanError(f"plan file {path} cannot be read: {e.strerror}") from e
