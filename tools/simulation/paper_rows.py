"""One instance of the paper's setting in, its figures out; many of them in, rows out. Pure."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from coordinator.planner.blocks import delay_s, frozen_optimum
from tools.simulation.paper_hindsight import hindsight
from tools.simulation.paper_milp import milp_delay_s
from tools.simulation.paper_model import Layer, World, draw_world
from tools.simulation.paper_runs import BASELINES, OURS, Run, headwise_policy, simulate

__all__ = ["Instance", "Job", "Row", "measure", "rows_of", "small_layer"]

Part = Literal["frozen", "run", "small-run"]

# Frozen intervals lie anywhere in a text of so many tokens [papers.md 1.7].
LONGEST_TOKENS = 1000
# HiGHS needs seconds for more.
MILP_DEVICES = 5
# Two-sided 95 % of a normal distribution.
NORMAL_95 = 1.96


class Job(NamedTuple):
    """One instance to measure.

    `frozen`: one interval, against its exact optimum. `run`: whole runs, against the sum of the
    intervals' optima, which nobody who pays for moves can reach. `small-run`: whole runs of a
    smaller layer, against the hindsight optimum that pays for moves.
    """

    part: Part
    n_devices: int
    seed: int
    n_tokens: int
    layer: Layer
    memory_scale: float
    with_milp: bool


class Instance(NamedTuple):
    """Figures of one instance.

    Attributes:
        job: what was measured.
        reference_s: the optimum's seconds, or None if nothing fits.
        runs: each algorithm's run.
        memory_bytes: what each device has.
        milp_over_oracle: HiGHS's optimum over ours, if it was asked; NaN if only one found any.
    """

    job: Job
    reference_s: float | None
    runs: dict[str, Run]
    memory_bytes: tuple[float, ...]
    milp_over_oracle: float | None = None


class Row(msgspec.Struct, frozen=True):
    """One algorithm over all seeds.

    Attributes:
        n: instances in which it always had a placement that fits, and a reference exists.
        infeasible: instances in which it had none at some point, though one exists.
        over_optimum: mean over n instances of seconds over the reference's, less 1.
        ci95: half the width of the 95 % interval of that mean.
        worst: the largest of them.
        mean_s: mean seconds of an instance, moves included.
        mean_move_s: mean seconds of that for moves.
        moves: mean number of intervals in which something moved.
        fullest_mb: mean of the most memory that any device needed, 10^6 bytes.
        saved: share of its seconds that headwise saves, mean over the instances where both fit.
        saved_ci95: half the width of the 95 % interval of that mean.
    """

    part: str
    devices: int
    algorithm: str
    n: int
    infeasible: int
    over_optimum: float
    ci95: float
    worst: float
    mean_s: float
    mean_move_s: float
    moves: float
    fullest_mb: float
    saved: float
    saved_ci95: float


def small_layer(n_devices: int) -> Layer | None:
    """Return a layer small enough for the hindsight optimum, or None: 3 to 5 devices have one."""
    return {
        3: Layer(n_heads=8, width=512),
        4: Layer(n_heads=8, width=512),
        5: Layer(n_heads=6, width=768),
    }.get(n_devices)


def measure(job: Job) -> Instance:
    """Draw an instance, run every algorithm in it, and find its optimum."""
    frozen = job.part == "frozen"
    past = int(np.random.default_rng(job.seed).integers(LONGEST_TOKENS)) if frozen else 0
    world = draw_world(
        job.n_devices, job.seed, 1 if frozen else job.n_tokens, job.layer, past, job.memory_scale
    )
    runs = {name: simulate(world, policy) for name, policy in BASELINES.items()}
    runs[OURS] = simulate(world, headwise_policy())
    memory_bytes = tuple(world.memory_bytes.tolist())
    if job.part == "small-run":
        best = hindsight(world)
        return Instance(job, None if best is None else best.total_s, runs, memory_bytes)
    jumping = runs["exact-and-jump"]
    reference_s = None if jumping.infeasible_at is not None else jumping.delay_s
    ratio = _milp(world) if frozen and job.with_milp else None
    return Instance(job, reference_s, runs, memory_bytes, ratio)


def _milp(world: World) -> float | None:
    """Return HiGHS's optimum of the first interval over ours."""
    if len(world.flop_per_s) > MILP_DEVICES:
        return None
    costs = world.observe(0).costs
    ours, found_s = frozen_optimum(costs), milp_delay_s(costs)
    if (ours is None) is not (found_s is None):
        return math.nan
    return None if ours is None or found_s is None else found_s / delay_s(ours, costs)


def rows_of(instances: Sequence[Instance]) -> list[Row]:
    """Return a row for each part, number of devices and algorithm, in the order of the first."""
    keys = list(dict.fromkeys((i.job.part, i.job.n_devices, a) for i in instances for a in i.runs))
    return [_row(*key, instances) for key in keys]


def _row(part: str, n_devices: int, algorithm: str, instances: Sequence[Instance]) -> Row:
    triples = [
        (i.runs[algorithm], i.runs[OURS], i.reference_s)
        for i in instances
        if i.job.part == part and i.job.n_devices == n_devices and i.reference_s is not None
    ]
    feasible = [(run, best_s) for run, _, best_s in triples if run.infeasible_at is None]
    over = [run.total_s / best_s - 1 for run, best_s in feasible]
    saved = [
        1 - ours.total_s / run.total_s
        for run, ours, _ in triples
        if run.infeasible_at is None and ours.infeasible_at is None
    ]
    n = len(over)
    row = Row(part, n_devices, algorithm, n, len(triples) - n, *[math.nan] * 9)
    if not n:
        return row
    return msgspec.structs.replace(
        row,
        over_optimum=statistics.fmean(over),
        ci95=_ci95(over),
        worst=max(over),
        mean_s=statistics.fmean(run.total_s for run, _ in feasible),
        mean_move_s=statistics.fmean(run.move_s for run, _ in feasible),
        moves=statistics.fmean(run.n_moves for run, _ in feasible),
        fullest_mb=statistics.fmean(max(run.held_bytes) for run, _ in feasible) / 1e6,
        saved=statistics.fmean(saved) if saved else math.nan,
        saved_ci95=_ci95(saved),
    )


def _ci95(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of the mean; 0 for a single value."""
    n = len(values)
    return NORMAL_95 * statistics.stdev(values) / math.sqrt(n) if n > 1 else 0.0
