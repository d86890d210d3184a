"""`headwise simulate paper`: every algorithm against the optimum, frozen and over whole runs."""

import argparse
import importlib.util
import json
import math
from collections.abc import Sequence

import msgspec

from kernels.errors import UsageError
from tools.bench_rows import csv_table, markdown
from tools.simulation.options import add_shared, check_range, each, save_plots
from tools.simulation.paper_model import Layer
from tools.simulation.paper_plots import memory_rows, memory_tables, paper_plots
from tools.simulation.paper_rows import Instance, Job, Row, measure, rows_of, small_layer

__all__ = ["add_arguments", "jobs_of", "run"]

MAX_DEVICES = 100

HEADS = {
    "frozen": "One interval, over its exact optimum",
    "run": "Whole runs, moves paid, over the sum of the intervals' optima (moves free)",
    "small-run": "Whole runs of a small layer, moves paid, over the hindsight optimum",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headwise simulate paper`."""
    layer = Layer()
    add_shared(parser, 50)
    parser.add_argument("--devices", default="3,4,5,25", metavar="LIST", help="numbers of devices")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of a whole run (100)")
    parser.add_argument("--heads", type=int, default=layer.n_heads, help="heads (32)")
    parser.add_argument("--width", type=int, default=layer.width, help="embedding (2048)")
    parser.add_argument("--prompt", type=int, default=layer.prompt_tokens, help="tokens (64)")
    parser.add_argument(
        "--memory-scale", type=float, default=1.0, metavar="X",
        help="times the memory drawn, which never binds (1)",
    )  # fmt: skip
    parser.add_argument("--milp", action="store_true", help="ask HiGHS too (needs scipy)")
    parser.add_argument("-o", "--output", choices=("md", "csv", "json"), default="md")


def run(args: argparse.Namespace) -> int:
    """Simulate, print, and return 0; with -o json the last line is one JSON object.

    Raises:
        UsageError: options out of range, or --milp without scipy.
    """
    jobs = jobs_of(args)
    if args.milp and importlib.util.find_spec("scipy") is None:
        raise UsageError("--milp needs scipy; add it with: pip install --group simulate")
    if args.plots is not None:
        # Whether it can be written is better known now than in ten minutes.
        save_plots(args.plots, {})
    # Long ones first, so that no process ends with one alone.
    order = sorted(range(len(jobs)), key=lambda i: -jobs[i].n_devices)
    done = each(measure, [jobs[i] for i in order], args.jobs)
    by_job = dict(zip(order, done, strict=True))
    instances = [by_job[i] for i in range(len(jobs))]
    rows = rows_of(instances)
    if args.plots is not None:
        save_plots(args.plots, paper_plots(instances))
    if args.output == "json":
        print(json.dumps(_report(args, instances, rows)))
    else:
        tables = [_markdown(rows), *memory_tables(instances)]
        print(csv_table(rows) if args.output == "csv" else "\n\n".join(tables))
    return 0


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Return the instances to measure.

    Raises:
        UsageError: options out of range.
    """
    devices = args.devices.split(",")
    if not all(d.isascii() and d.isdecimal() and 1 <= int(d) <= MAX_DEVICES for d in devices):
        raise UsageError(
            f"--devices {args.devices!r}; write numbers from 1 to {MAX_DEVICES} like 3,4,5,25"
        )
    check_range(args, ("seeds", "jobs", "tokens"), 0, 10_000)
    check_range(args, ("heads", "width", "prompt", "memory_scale"), 0, 1e6)
    check_range(args, ("seed",), -1, 2**31)
    if args.width % args.heads:
        raise UsageError(
            f"--width {args.width} and --heads {args.heads}: the width must be a multiple of the "
            f"heads"
        )
    layer = Layer(args.heads, args.width, prompt_tokens=args.prompt)
    jobs: list[Job] = []
    for n in dict.fromkeys(map(int, devices)):
        small = small_layer(n)
        for seed in range(args.seed, args.seed + args.seeds):
            common = (n, seed, args.tokens)
            jobs += [
                Job("frozen", *common, layer, args.memory_scale, args.milp),
                Job("run", *common, layer, args.memory_scale, False),
            ]
            if small is not None:
                jobs.append(Job("small-run", *common, small, 1.0, False))
    return jobs


def _report(
    args: argparse.Namespace, instances: Sequence[Instance], rows: Sequence[Row]
) -> dict[str, object]:
    names = ("seed", "seeds", "tokens", "heads", "width", "prompt", "memory_scale")
    ratios = [i.milp_over_oracle for i in instances if i.milp_over_oracle is not None]
    # NaN is no JSON.
    fields = [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in map(msgspec.structs.asdict, rows)
    ]
    report: dict[str, object] = {"setting": "paper", **{n: getattr(args, n) for n in names}}
    if args.milp:
        worst = max((abs(r - 1) for r in ratios if not math.isnan(r)), default=None)
        report["milp"] = {
            "compared": len(ratios),
            "disagree_on_feasibility": sum(map(math.isnan, ratios)),
            "worst_difference": worst,
        }
    return {**report, "rows": fields, "memory": memory_rows(instances)}


def _markdown(rows: Sequence[Row]) -> str:
    """Return a table for each part: a line an algorithm, a column a number of devices."""
    texts = []
    for part in dict.fromkeys(row.part for row in rows):
        mine = [row for row in rows if row.part == part]
        devices = list(dict.fromkeys(row.devices for row in mine))
        cells = [["algorithm", *(f"{n} devices" for n in devices)]]
        for algorithm in dict.fromkeys(row.algorithm for row in mine):
            line = {row.devices: _cell(row) for row in mine if row.algorithm == algorithm}
            cells.append([algorithm, *(line[n] for n in devices)])
        texts.append(f"{HEADS[part]}:\n\n{markdown(cells)}")
    return "\n\n".join(texts)


def _cell(row: Row) -> str:
    if not row.n:
        return "never fits"
    text = f"{100 * row.over_optimum:+.2f} % ± {100 * row.ci95:.2f}"
    if row.moves:
        text += f", {row.moves:.1f} moves"
    return text + (f", {row.infeasible} do not fit" if row.infeasible else "")
