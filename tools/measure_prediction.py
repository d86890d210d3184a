"""How well the planner foresees the time of a token, for placements that it was not fitted on.

`python tools/measure_prediction.py --shape ../shared/models/configs/tinyllama_1b_chat_v1.0.json`
makes a random q8 model of that shape and four real agents that play boards of different rates.
Texts under two placements let the coordinator measure what it measures in production: rates of
kernels, links, exchanges. With what it knows then it predicts six other placements of 1 to 4
boards, and only then they are run, each for one text. Prints a table: predicted, measured by the
reader of the stream (median), by how much the prediction is wrong, and how much of both is
exchanges and the coordinator's own work. The last line is one JSON
object; ends with 1 if a prediction is off by more than 15 %.
"""

import argparse
import contextlib
import itertools
import json
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from agent.emulation import parse_rate
from agent.shell import run_verb
from coordinator.cluster import Cluster
from coordinator.plan import Plan
from coordinator.planner.place import Costs, Link, Offer, PlanRequest, assess
from coordinator.report import format_table
from kernels.errors import InputError
from tools.faults.here import cluster_here
from tools.faults.scratch import add_model_arguments, scratch
from tools.migration.stream import Stream
from tools.prediction.placements import FITTED, JUDGED, N_BOARDS, Placement, placed

__all__ = ["add_arguments", "run"]

# The limit of issue 5.
MOST_WRONG = 0.15
NAMES = [f"board-{i + 1}" for i in range(N_BOARDS)]
# The first tokens of a text still warm caches.
SETTLE_TOKENS = 2
LEAST_TOKENS = SETTLE_TOKENS + 6


class _Row(NamedTuple):
    """One placement: seconds of a token as predicted and measured, and where they were spent."""

    name: str
    n_agents: int
    context_tokens: int
    predicted_s: float
    predicted_around_s: float
    measured_s: float
    measured_around_s: float

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted_s / self.measured_s - 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the measurement."""
    add = parser.add_argument
    add_model_arguments(parser)
    add(
        "--bytes-per-s", type=_rates, default=[1e9, 8e8, 6e8, 4e8], metavar="R,R,R,R",
        help="rates of the boards (1e9,8e8,6e8,4e8)",
    )  # fmt: skip
    add("--lab", action="store_true", help="boards on hosts of their own, cables of netlab (root)")
    add("--rate", default="1gbit", help="of the lab's cables (1gbit)")
    add("-n", "--tokens", type=int, default=24, help="of each text (24)")
    add("--prompt-tokens", type=int, default=16, help="of a short prompt (16)")
    add("--long-prompt-tokens", type=int, default=1500, help="of the long one (1500)")
    add("--rounds", type=int, default=1, help="of it all; the median round counts (1)")
    add("--exact", action="store_true", help="f32 on the wire and in the KV cache (f16)")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns 1 if a prediction was off by more than 15 %.

    Raises:
        HeadwiseError: it could not begin, or a text was not written.
    """
    if args.tokens < LEAST_TOKENS:
        raise InputError(f"--tokens {args.tokens}; medians need at least {LEAST_TOKENS}")
    if min(args.prompt_tokens, args.long_prompt_tokens, args.rounds) < 1:
        raise InputError("--prompt-tokens, --long-prompt-tokens and --rounds: give at least 1")
    with scratch(args) as (root, model), _cluster(args, model, root) as cluster:
        rows, told = _measure(args, cluster)
    print(format_table(_cells(rows)))
    wrong = max(abs(row.error) for row in rows)
    report = {
        "bytes_per_s": args.bytes_per_s,
        "tokens": args.tokens,
        "rounds": args.rounds,
        "lab": args.rate if args.lab else None,
        "known": told,
        "rows": [row._asdict() | {"error": row.error} for row in rows],
        "worst_error": wrong,
        "ok": wrong <= MOST_WRONG,
    }
    print(json.dumps(report))
    return int(not report["ok"])


def _rates(text: str) -> list[float]:
    """Return the rates of the boards, for argparse."""
    rates = [parse_rate(word) for word in text.split(",")]
    if len(rates) != N_BOARDS:
        raise argparse.ArgumentTypeError(
            f"{text!r}; give {N_BOARDS} rates, such as 1e9,8e8,6e8,4e8"
        )
    return rates


def _cluster(
    args: argparse.Namespace, model: Path, root: Path
) -> contextlib.AbstractContextManager[Cluster]:
    """Boards, and a coordinator in this process."""
    rates = dict(zip(NAMES, args.bytes_per_s, strict=True))
    ctx = args.long_prompt_tokens + args.prompt_tokens + args.tokens
    return cluster_here(
        rates, model, root, args.rate if args.lab else None, place="spread", exact=args.exact,
        context_tokens=ctx,
    )  # fmt: skip


class _Known(NamedTuple):
    """What the coordinator knows when it predicts."""

    offers: list[Offer]
    link: Link
    costs: Costs

    def told(self) -> dict[str, object]:
        """Return it for people."""
        rates = {o.name: o.bytes_per_s for o in self.offers}
        costs = self.link._asdict() | self.costs._asdict()
        return {"bytes_per_s": rates, **{k: v for k, v in costs.items() if k != "bytes_per_s"}}


def _measure(args: argparse.Namespace, cluster: Cluster) -> tuple[list[_Row], list[object]]:
    """Return of each placement the round whose error is the median one, and what was known."""
    assert cluster.plan is not None
    like, told = cluster.plan, list[object]()
    found: list[list[_Row]] = [[] for _ in JUDGED]
    for _ in range(args.rounds):
        known = _fitted(args, cluster, like)
        told.append(known.told())
        print(f"known: {told[-1]}", file=sys.stderr, flush=True)
        for rows, row in zip(found, _judged(args, cluster, like, known), strict=True):
            rows.append(row)
    return [sorted(rows, key=lambda row: row.error)[len(rows) // 2] for rows in found], told


def _fitted(args: argparse.Namespace, cluster: Cluster, like: Plan) -> _Known:
    """Write texts under the placements to fit on; return what is known then."""
    for placement in FITTED:
        plan = placed(placement, cluster.directory.geometry, NAMES, like)
        found_s, _ = _token_s(args, cluster, plan, placement)
        costs = cluster.installer.costs()
        print(f"fitted on {placement.name}: {1e3 * found_s:.1f} ms", file=sys.stderr, flush=True)
    return _Known(cluster.control.offers(), cluster.control.link(), costs)


def _judged(
    args: argparse.Namespace, cluster: Cluster, like: Plan, known: _Known
) -> Iterator[_Row]:
    """Predict everything, and only then run what was predicted."""
    geometry = cluster.directory.geometry
    plans = [placed(placement, geometry, NAMES, like) for placement in JUDGED]
    predicted = [
        assess(plan, geometry, known.offers, _request(args, plan, placement), *known[1:]).time
        for plan, placement in zip(plans, JUDGED, strict=True)
    ]
    for placement, plan, time in zip(JUDGED, plans, predicted, strict=True):
        found_s, exchange_s = _token_s(args, cluster, plan, placement)
        row = _Row(
            placement.name, len(plan.members), _context_tokens(args, placement),
            time.total_s, time.exchange_s, found_s, exchange_s,
        )  # fmt: skip
        print(" ".join(_cells([row])[-1]), file=sys.stderr, flush=True)
        yield row


def _request(args: argparse.Namespace, plan: Plan, placement: Placement) -> PlanRequest:
    """Return what is served: one context, of the length that the text has in its middle."""
    n_tokens, most = _context_tokens(args, placement), plan.context_tokens
    request = PlanRequest(most, most, wire=plan.wire, kv=plan.kv, place="spread")
    return replace(request, typical_tokens=n_tokens)


def _context_tokens(args: argparse.Namespace, placement: Placement) -> int:
    return int(_prompt_tokens(args, placement) + (SETTLE_TOKENS + args.tokens) // 2)


def _prompt_tokens(args: argparse.Namespace, placement: Placement) -> int:
    return int(args.long_prompt_tokens if placement.is_long else args.prompt_tokens)


def _token_s(
    args: argparse.Namespace, cluster: Cluster, plan: Plan, placement: Placement
) -> tuple[float, float]:
    """Return the median time of a token, by its reader, and the mean of what is around kernels."""
    rng = random.Random(placement.name)
    vocab_size = cluster.directory.config.vocab_size
    prompt = [rng.randrange(vocab_size) for _ in range(_prompt_tokens(args, placement))]
    cluster.install(plan)
    stream = Stream(cluster, prompt, args.tokens)
    stream.read(SETTLE_TOKENS)
    times, before_s = cluster.engine.times, _around_s(cluster)
    n_before = times.n_steps
    stream.read(args.tokens - SETTLE_TOKENS)
    around_s = (_around_s(cluster) - before_s) / max(times.n_steps - n_before, 1)
    stream.close()
    gaps = [b - a for a, b in itertools.pairwise(stream.times_s[SETTLE_TOKENS - 1 :])]
    return statistics.median(gaps), around_s


def _around_s(cluster: Cluster) -> float:
    """Return the seconds of this text so far in exchanges and the coordinator's own work."""
    return cluster.engine.times.exchange_s + cluster.engine.times.coordinator_s


def _cells(rows: Sequence[_Row]) -> list[list[str]]:
    """Return the table of some rows, headings first."""
    head = ["placement", "boards", "context", "predicted", "measured", "error", "around kernels"]
    return [head] + [
        [
            row.name, str(row.n_agents), str(row.context_tokens), f"{1e3 * row.predicted_s:.1f} ms",
            f"{1e3 * row.measured_s:.1f} ms", f"{100 * row.error:+.1f} %",
            f"{1e3 * row.predicted_around_s:.1f} / {1e3 * row.measured_around_s:.1f} ms",
        ]
        for row in rows
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_verb("measure_prediction", "Predicted token times.", (add_arguments, run)))
