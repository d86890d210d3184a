"""The `plan` verb: who would hold what, in how much memory, how fast, and what it beat.

Nothing is started and nothing moves. With --json the plan itself, ready for `run --plan FILE`.
With --attach it is the plan that the running coordinator has in force.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from agent.address import check_name
from agent.ids import ModelId
from agent.memory import available_memory_bytes
from agent.resources import memory_budget_bytes, usable_cores
from agent.share import KV_HELP, KvFormat, WireFormat
from agent.shell import parse_size_bytes
from agent.speed import measure_bytes_per_s
from coordinator.admin_client import find_coordinator
from coordinator.admin_messages import GetPlan, LivePlan
from coordinator.cluster_args import read_plan
from coordinator.cluster_options import checked_context
from coordinator.local import MAX_LOCAL_AGENTS, local_names
from coordinator.plan import check_model, check_plan, encode_plan
from coordinator.planner.explain import explain
from coordinator.planner.place import Link, Offer, Planned, PlanRequest, assess, make_plan
from coordinator.report import HEADINGS, format_bytes, format_table, placement_rows
from kernels.errors import InputError, RemoteError, UsageError
from kernels.layout import Geometry
from weights.demo import demo_path
from weights.directory import ModelDirectory

__all__ = ["add_arguments", "read_offers", "run"]

MAX_FILE_BYTES = 1 << 20
MAX_THREADS = 4096
MAX_HOP_MS = 60_000.0


class _Board(msgspec.Struct, forbid_unknown_fields=True):
    """One agent of an --agents file; memory as bytes or as text such as "2G"."""

    name: str
    memory: int | str
    bytes_per_s: float
    threads: int = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headwise plan`."""
    parser.add_argument("-m", "--model", type=Path, help="model directory (default: the demo)")
    parser.add_argument(
        "--agents", default="3", metavar="N|FILE",
        help='N agents like this machine, or a JSON file: [{"name": "pi-1", "memory": "3G", '
        '"bytes_per_s": 4e9, "threads": 4}, ...] (default: 3)',
    )  # fmt: skip
    parser.add_argument("--plan", type=Path, metavar="FILE", help="assess this plan instead")
    parser.add_argument("--place", choices=["auto", "spread"], default="auto")
    parser.add_argument("-c", "--ctx", type=int, metavar="TOKENS", help="longest context")
    parser.add_argument("--exact", action="store_true", help="plan for f32 wire and KV")
    parser.add_argument("--kv", choices=get_args(KvFormat), help=KV_HELP)
    parser.add_argument("--hop-ms", type=float, default=0.3, help="one-way delay (0.3)")
    parser.add_argument("--link-mbit", type=float, default=940.0, help="goodput, Mbit/s (940)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument(
        "--attach", type=int, nargs="?", const=0, metavar="PORT",
        help="show the plan in force of the coordinator that `headwise serve` runs here",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Plan, print, and return the exit code.

    Raises:
        HeadwiseError: the model does not fit, or an input is wrong.
    """
    if args.attach is not None:
        return _show_live(args)
    with ModelDirectory.open(args.model or demo_path()) as directory:
        geometry = directory.geometry
        ctx = checked_context(args.ctx, directory)
        wire: WireFormat = "f32" if args.exact else "f16"
        request = PlanRequest(ctx, ctx, wire=wire, kv=args.kv or wire, place=args.place)
        link = _link(args.hop_ms, args.link_mbit)
        offers = read_offers(args.agents)
        if args.plan is not None:
            plan = read_plan(args.plan)
            check_model(plan, directory.model_id)
            check_plan(plan, geometry)
            planned = assess(plan, geometry, offers, request, link)
        else:
            planned = make_plan(ModelId(directory.model_id), geometry, offers, request, link)
    if args.json:
        sys.stdout.write(encode_plan(planned.plan).decode())
    else:
        print(_describe(planned, geometry, offers, request, link))
    return 0


def _show_live(args: argparse.Namespace) -> int:
    others = {"model": args.model, "plan": args.plan, "ctx": args.ctx, "kv": args.kv}
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise UsageError(f"--{given[0]} is not for the plan in force; leave out it or --attach")
    with find_coordinator(args.attach or None) as client:
        reply = client.answer(GetPlan())
    if not isinstance(reply, LivePlan):
        raise RemoteError("the coordinator answers something else; is it another version?")
    if args.json:
        sys.stdout.write(encode_plan(reply.plan).decode())
    else:
        print(f"{reply.text}\n\nplan epoch {reply.epoch}, in force")
    return 0


def read_offers(agents: str) -> list[Offer]:
    """Return the agents that `--agents` describes: a count, or a file.

    Raises:
        InputError: no count in range, no such file, or a file that cannot be read.
    """
    if agents.isascii() and agents.isdecimal():
        if len(agents) > 9 or not 1 <= int(agents) <= MAX_LOCAL_AGENTS:
            raise InputError(f"--agents {agents}; 1 to {MAX_LOCAL_AGENTS} are possible")
        memory_bytes = memory_budget_bytes(available_memory_bytes(), None)
        n_cores = usable_cores()
        bytes_per_s = measure_bytes_per_s(n_cores)
        return [
            Offer(name, memory_bytes, bytes_per_s, n_cores) for name in local_names(int(agents))
        ]
    try:
        data = Path(agents).read_bytes()[:MAX_FILE_BYTES]
        boards = msgspec.json.decode(data, type=list[_Board])
        return [_offer(board) for board in boards]
    except OSError as e:
        raise InputError(f"--agents {agents!r} is neither a count nor a file: {e.strerror}") from e
    except (msgspec.DecodeError, RecursionError, argparse.ArgumentTypeError) as e:
        raise InputError(
            f'{agents} is no list of agents: {e}; write it like [{{"name": "pi-1", '
            f'"memory": "3G", "bytes_per_s": 4e9}}]'
        ) from e


def _offer(board: _Board) -> Offer:
    memory = board.memory
    memory_bytes = memory if isinstance(memory, int) else parse_size_bytes(memory)
    if memory_bytes < 0:
        raise InputError(f"board {board.name!r} has memory {memory}; it cannot be negative")
    # Written so that NaN fails.
    if not 0.0 < board.bytes_per_s < 1e15:
        raise InputError(
            f"board {board.name!r} has bytes_per_s {board.bytes_per_s:g}; give what its kernels "
            f"read a second, such as 4e9"
        )
    if not 1 <= board.threads <= MAX_THREADS:
        raise InputError(f"board {board.name!r} has {board.threads} threads; 1 to {MAX_THREADS}")
    return Offer(check_name(board.name), memory_bytes, board.bytes_per_s, board.threads)


def _link(hop_ms: float, link_mbit: float) -> Link:
    if not 0.0 <= hop_ms <= MAX_HOP_MS:
        raise InputError(f"--hop-ms {hop_ms:g}; 0 to {MAX_HOP_MS:g} are possible")
    if not 0.001 <= link_mbit <= 1e6:
        raise InputError(f"--link-mbit {link_mbit:g}; 0.001 to 1000000 are possible")
    return Link(hop_ms / 1000, link_mbit * 125e3)


def _describe(
    planned: Planned, geometry: Geometry, offers: Sequence[Offer], request: PlanRequest, link: Link
) -> str:
    ctx = request.context_tokens
    rows: list[list[str]] = [[*HEADINGS, "KV pool", "of memory"]]
    placed = placement_rows(planned.plan, geometry)
    for cells, member in zip(placed, planned.members, strict=True):
        share = 100 * member.total_bytes / max(member.budget_bytes, 1)
        budget = format_bytes(member.budget_bytes)
        rows.append([*cells, format_bytes(member.kv_pool_bytes), f"{share:.1f} % of {budget}"])
    speed = (
        f"predicted: {1000 * planned.token_s:.2f} ms per token "
        f"({1 / planned.token_s:.1f} tokens/s) with {ctx // 2} of {ctx} tokens of context filled, "
        f"{1000 * link.hop_s:g} ms and {link.bytes_per_s / 125e3:g} Mbit/s between boards"
    )
    lines = [format_table(rows), "", speed]
    lines += explain(planned, geometry, offers, request, link).lines()
    if planned.considered:
        lines += ["", format_table([["agents", "ms per token", "verdict"], *_considered(planned)])]
    return "\n".join(lines)


def _considered(planned: Planned) -> list[list[Any]]:
    return [
        [
            f"{a.n_agents}: {', '.join(a.names)}",
            "-" if a.token_s is None else f"{1000 * a.token_s:.2f}",
            a.rejected or "chosen",
        ]
        for a in planned.considered
    ]
