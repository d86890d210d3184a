"""The `status` verb: who is here, what they hold, and how it goes."""

import argparse
import sys
import time

import msgspec

from coordinator.admin_client import find_coordinator
from coordinator.admin_messages import GetStatus
from coordinator.admin_verbs import add_port_argument
from coordinator.report import format_bytes, format_table
from coordinator.status import AgentStatus, MirrorStatus, MoveStatus, Status
from kernels.errors import InputError, RemoteError

__all__ = ["add_arguments", "describe", "run"]

HEADINGS = [
    "agent", "state", "free, forecast / offered", "weights", "KV", "groups", "columns",
    "vocabulary", "rate", "round trip", "goodput", "faults", "heat", "version",
]  # fmt: skip
CLEAR_SCREEN = "\x1b[H\x1b[2J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headwise status`."""
    add_port_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--watch", type=float, nargs="?", const=1.0, metavar="S",
        help="print anew every S seconds (1), until Ctrl-C",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the status and return the exit code.

    Raises:
        HeadwiseError: no coordinator runs, or it does not answer.
    """
    if args.watch is not None and not 0.1 <= args.watch <= 3600.0:
        raise InputError(f"--watch {args.watch:g}; 0.1 to 3600 seconds are possible")
    while True:
        status = _ask(args.port)
        if args.json:
            print(msgspec.json.encode(status).decode(), flush=True)
        else:
            clear = CLEAR_SCREEN if args.watch is not None and sys.stdout.isatty() else ""
            print(clear + describe(status), flush=True)
        if args.watch is None:
            return 0
        time.sleep(args.watch)


def _ask(port: int | None) -> Status:
    with find_coordinator(port) as client:
        reply = client.answer(GetStatus())
        if not isinstance(reply, Status):
            raise RemoteError("the coordinator answers something else; is it another version?")
        return reply


def describe(status: Status) -> str:
    """Return the status as text for people."""
    s = status
    agents = [agent for agent in s.agents if agent.state not in ("lost", "left")]
    lines = [
        f"model {s.model} ({s.model_id[:12]}), port {s.port}, pid {s.pid}, run {s.run_id}",
        f"{s.state}, up {_duration(s.uptime_s)}, plan epoch {s.epoch or '-'}, version {s.software}",
        f"agents: {len(agents)} here, {s.min_agents} needed",
        f"requests: {s.n_served} served, {s.n_failed} failed, {s.n_waiting} waiting",
    ]
    odd = [f"{what} {n}" for n, what in _odd(s) if n]
    if odd:
        lines.append(f"dropped or refused: {', '.join(odd)}")
    if s.move is not None:
        lines.append(_move(s.move))
    if s.mirror is not None:
        lines.append(_mirror(s.mirror))
    if s.problem:
        lines.append(f"problem: {s.problem}")
    if s.agents:
        lines += ["", format_table([HEADINGS, *map(_cells, s.agents)])]
        lines += [f"{a.name}: {a.reason}" for a in s.agents if a.reason]
    return "\n".join(lines)


def _odd(s: Status) -> list[tuple[int, str]]:
    """Return how often each thing happened that never does where all goes well."""
    return [
        (s.n_frames_dropped, "hot frames"),
        (s.n_messages_dropped, "control messages"),
        (s.n_pulls_dropped, "bulk messages"),
        (s.n_pulls_refused, "pulls without a grant"),
        (s.n_keys_refused, "handshakes with unknown keys"),
    ]


def _move(move: MoveStatus) -> str:
    return (
        f"migration from epoch {move.from_epoch} to {move.epoch}: {move.state}, "
        f"{move.n_groups} head groups, {move.have_tokens} of {move.want_tokens} tokens there"
    )


def _mirror(mirror: MirrorStatus) -> str:
    if mirror.lag_tokens is None:
        return f"mirror: none, {mirror.reason}"
    more = f"; {mirror.reason}" if mirror.reason else ""
    return f"mirror: {mirror.lag_tokens} tokens behind, {mirror.holders}{more}"


def _cells(agent: AgentStatus) -> list[str]:
    state = agent.state
    if agent.loading_percent is not None:
        state += f" {agent.loading_percent:.0f} %"
    if agent.coming_percent is not None:
        state += f", epoch {agent.coming_epoch} {agent.coming_percent:.0f} %"
    free, then = map(_bytes, (agent.memory_free_bytes, agent.memory_forecast_bytes))
    trip = "-" if agent.round_trip_s is None else f"{1000 * agent.round_trip_s:.2f} ms"
    return [
        agent.name,
        state,
        f"{free}, {then} / {format_bytes(agent.memory_offered_bytes)}",
        format_bytes(agent.weights_bytes),
        format_bytes(agent.kv_bytes),
        str(agent.n_head_groups),
        str(agent.n_columns),
        str(agent.n_vocab_rows),
        _rate(agent),
        trip,
        _goodput(agent),
        str(agent.major_faults),
        _heat(agent),
        agent.software or "-",
    ]


def _bytes(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else format_bytes(n_bytes)


def _rate(agent: AgentStatus) -> str:
    """Return how fast kernels read; `~` before what was measured at the start only."""
    if not agent.bytes_per_s:
        return "-"
    return f"{'' if agent.is_measured else '~'}{agent.bytes_per_s / 1e9:.3g} GB/s"


def _goodput(agent: AgentStatus) -> str:
    goodput = agent.goodput_bytes_per_s
    return "-" if goodput is None else f"{goodput / 125e3:.3g} Mbit/s"


def _heat(agent: AgentStatus) -> str:
    heat = "-" if agent.temperature_c is None else f"{agent.temperature_c:.0f} C"
    return f"{heat} throttled" if agent.throttled else heat


def _duration(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    return f"{h} h {m} min" if h else f"{m} min {s} s" if m else f"{s} s"
