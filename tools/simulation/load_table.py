"""`headwise simulate load`: tokens per second under changing load, by policy and dwell time."""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from kernels.errors import UsageError
from tools.simulation.load import POLICIES, LoadSetting, Outcome, simulate
from tools.simulation.load_plots import load_plots
from tools.simulation.options import add_shared, check_range, each, save_plots

__all__ = ["add_arguments", "run"]

NORMAL_95 = 1.96
MAX_BOARDS = 16
SAMPLES_AT_MOST = 1e6

Found = dict[tuple[float, int, str], Outcome]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headwise simulate load`."""
    d = LoadSetting()
    add_shared(parser, 20)
    parser.add_argument(
        "--dwell", default="3,15,60,300", metavar="S,S,...", help="mean seconds in each state"
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="length of a run (600)")
    parser.add_argument("--boards", default="4,4,4,4", metavar="GB/S,...", help="rates of boards")
    parser.add_argument(
        "--memory", type=float, default=d.memory_bytes / 2**30, metavar="GIB",
        help="memory of each board (4)",
    )  # fmt: skip
    parser.add_argument(
        "--slow-share", type=float, default=d.slow_share, help="rate of a slowed board (0.35)"
    )
    parser.add_argument(
        "--sample", type=float, default=d.sample_s, metavar="S",
        help="how often a board looks at its rate (0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--beat", type=float, default=d.beat_s, metavar="S",
        help="how often it tells it, changes apart (0.4)",
    )  # fmt: skip
    parser.add_argument(
        "--notice", type=float, default=d.notice_s, metavar="S",
        help="from there until the coordinator acts on it (0)",
    )  # fmt: skip
    parser.add_argument(
        "--lost-every", type=float, default=0.0, metavar="S",
        help="each board is lost after that mean time, and comes back (never)",
    )  # fmt: skip
    parser.add_argument("--away", type=float, default=d.away_s, metavar="S", help="mean time (60)")
    parser.add_argument("--no-mirror", action="store_true", help="lost KV is computed again")
    parser.add_argument(
        "--squeezed-every", type=float, default=0.0, metavar="S",
        help="others take most of a board's memory after that mean time, for a while (never)",
    )  # fmt: skip
    parser.add_argument(
        "--squeezed", type=float, default=d.squeezed_s, metavar="S", help="mean time (60)"
    )
    parser.add_argument(
        "--squeezed-share", type=float, default=d.squeezed_share, help="memory left then (0.05)"
    )
    parser.add_argument("--horizon-share", type=float, default=d.horizon_share)
    parser.add_argument("--back-share", type=float, default=d.back_share)
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")


def run(args: argparse.Namespace) -> int:
    """Simulate, print the table (with -o text) and one JSON object, and return 0.

    Raises:
        UsageError: options out of range.
    """
    base, dwells = _setting(args)
    if args.plots is not None:
        # Whether it can be written is better known now than in ten minutes.
        save_plots(args.plots, {})
    seeds = range(args.seed, args.seed + args.seeds)
    work = [
        (replace(base, dwell_s=dwell_s), seed, policy)
        for dwell_s, seed, policy in product(dwells, seeds, POLICIES)
    ]
    outcomes = each(_simulate, work, args.jobs)
    found = {(s.dwell_s, seed, p): o for (s, seed, p), o in zip(work, outcomes, strict=True)}
    rows = [_row(dwell_s, seeds, found) for dwell_s in dwells]
    if args.plots is not None:
        for dwell_s in dwells:
            of_one = {p: found[dwell_s, args.seed, p] for p in POLICIES}
            save_plots(args.plots, load_plots(dwell_s, args.seed, base.duration_s, of_one))
    if args.output == "text":
        _print(rows)
    setting = {
        k: v for k, v in vars(args).items()
        if isinstance(v, (str, int, float)) and k not in ("output", "jobs", "verb", "setting")
    }  # fmt: skip
    print(json.dumps({"setting": "load", "options": setting, "rows": rows}))
    return 0


def _simulate(work: tuple[LoadSetting, int, str]) -> Outcome:
    return simulate(*work)


def _setting(args: argparse.Namespace) -> tuple[LoadSetting, list[float]]:
    """Return the setting and the dwell times.

    Raises:
        UsageError: options out of range.
    """
    rates, dwells = _numbers("--boards", args.boards), _numbers("--dwell", args.dwell)
    if len(rates) > MAX_BOARDS:
        raise UsageError(f"--boards names {len(rates)} boards; at most {MAX_BOARDS}")
    check_range(args, ("seeds", "jobs"), 0, 10_000)
    check_range(args, ("seed",), -1, 2**31)
    check_range(args, ("seconds", "away", "squeezed", "memory"), 0, 1e6)
    check_range(args, ("beat",), 0, 1e6)
    check_range(args, ("notice",), -1e-9, 1e6)
    check_range(args, ("sample",), args.seconds / SAMPLES_AT_MOST, args.seconds)
    check_range(args, ("slow_share", "squeezed_share", "horizon_share"), 0, 1)
    check_range(args, ("lost_every", "squeezed_every", "back_share"), -1e-9, 1e6)
    base = LoadSetting(
        bytes_per_s=tuple(1e9 * x for x in rates),
        memory_bytes=int(args.memory * 2**30),
        slow_share=args.slow_share,
        lost_every_s=args.lost_every,
        away_s=args.away,
        squeezed_every_s=args.squeezed_every,
        squeezed_s=args.squeezed,
        squeezed_share=args.squeezed_share,
        mirrored=not args.no_mirror,
        duration_s=args.seconds,
        sample_s=args.sample,
        beat_s=args.beat,
        notice_s=args.notice,
        horizon_share=args.horizon_share,
        back_share=args.back_share,
    )
    return base, list(dict.fromkeys(dwells))


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(x) for x in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(0 < x <= 1e5 for x in numbers):
        raise UsageError(f"{option} {text!r}; write numbers above 0 like 3,15,60")
    return numbers


def _row(dwell_s: float, seeds: Sequence[int], found: Found) -> dict[str, object]:
    """Return means and 95 % intervals of each policy, and of ours against static and oracle."""
    runs = {p: [found[dwell_s, s, p] for s in seeds] for p in POLICIES}
    speeds = {p: [o.tokens_per_s for o in outcomes] for p, outcomes in runs.items()}
    row: dict[str, object] = {"dwell_s": dwell_s}
    for policy, outcomes in runs.items():
        row[policy] = _interval(speeds[policy])
        row[f"{policy}_moves"] = round(statistics.fmean(o.n_changes for o in outcomes), 1)
        row[f"{policy}_moved_gb"] = round(
            statistics.fmean(o.moved_bytes for o in outcomes) / 1e9, 2
        )
        row[f"{policy}_gaps_s"] = round(statistics.fmean(o.gaps_s for o in outcomes), 2)
        row[f"{policy}_most_held_mb"] = [
            round(max(c.held_bytes[j] for o in outcomes for c in o.changes) / 1e6)
            for j in range(len(outcomes[0].changes[0].held_bytes))
        ]
    for policy, other in product(("resident", "moved"), ("oracle", "static")):
        ratios = [a / b for a, b in zip(speeds[policy], speeds[other], strict=True) if b > 0]
        row[f"{policy}/{other}"] = _interval(ratios)
        row[f"{policy}/{other}_least"] = round(min(ratios), 4) if ratios else None
    return row


def _interval(values: Sequence[float]) -> list[float | None]:
    """Return mean and half width of the 95 % interval (normal, widened for few values)."""
    n = len(values)
    if n < 2:
        return [round(values[0], 4) if values else None, None]
    # Close to Student's t from 5 values on.
    t = NORMAL_95 + 2.4 / (n - 1) + 5.0 / (n - 1) ** 2
    half = t * statistics.stdev(values) / math.sqrt(n)
    return [round(statistics.fmean(values), 4), round(half, 4)]


def _print(rows: list[dict[str, object]]) -> None:
    columns = [*POLICIES, "resident/oracle", "resident/static", "moved/oracle", "moved/static"]
    print("| dwell | " + " | ".join(columns) + " | least resident/static | least moved/static |")
    print("|---" * (len(columns) + 3) + "|")
    for row in rows:
        cells = []
        for column in columns:
            value = row[column]
            assert isinstance(value, list)
            digits = 3 if "/" in column else 2
            cells.append(" ± ".join("-" if v is None else f"{v:.{digits}f}" for v in value))
        cells += [str(row["resident/static_least"]), str(row["moved/static_least"])]
        print(f"| {row['dwell_s']:g} s | " + " | ".join(cells) + " |")
