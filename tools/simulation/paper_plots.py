"""Plots and the memory table of the paper's setting, from the instances that were measured."""

import statistics
from collections.abc import Sequence

from tools.bench_rows import markdown
from tools.simulation.paper_rows import Instance
from tools.simulation.paper_runs import OURS
from tools.simulation.svg import bars, curves

__all__ = ["memory_rows", "memory_tables", "paper_plots"]

# Wider tables and plots cannot be read.
MAX_DEVICES = 8
FEW = ("algorithm1", "round-robin", "static", "equal-slices", OURS)
# Times the best one's token time; slower algorithms are left out of the plot of latencies.
MOST_TIMES = 2.0


def memory_rows(instances: Sequence[Instance]) -> list[dict[str, object]]:
    """Return the memory of each device, 10^6 bytes, in the whole run of the first seed."""
    rows: list[dict[str, object]] = []
    for first in _firsts(instances):
        have = [round(b / 1e6, 1) for b in first.memory_bytes]
        for algorithm, run in first.runs.items():
            held = [round(b / 1e6, 1) for b in run.held_bytes]
            rows.append({
                "devices": first.job.n_devices, "seed": first.job.seed, "algorithm": algorithm,
                "held_mb": held, "have_mb": have, "fits": run.infeasible_at is None,
            })  # fmt: skip
    return rows


def memory_tables(instances: Sequence[Instance]) -> list[str]:
    """Return a markdown table for each number of devices that a page is wide enough for."""
    texts = []
    for first in _firsts(instances):
        n = first.job.n_devices
        if n > MAX_DEVICES:
            continue
        cells = [["algorithm", *(f"device {j}" for j in range(n))]]
        cells.append(["(has)", *(f"{b / 1e6:.0f}" for b in first.memory_bytes)])
        cells += [[a, *(f"{b / 1e6:.0f}" for b in r.held_bytes)] for a, r in first.runs.items()]
        title = f"Memory per device at the most, MB, {n} devices, seed {first.job.seed}"
        texts.append(f"{title}:\n\n{markdown(cells)}")
    return texts


def paper_plots(instances: Sequence[Instance]) -> dict[str, str]:
    """Return SVG plots by name: latency against tokens, moves over time, memory per device."""
    plots = {}
    for n in dict.fromkeys(i.job.n_devices for i in instances):
        runs = [i for i in instances if i.job.part == "run" and i.job.n_devices == n]
        tokens, moves = _tokens(runs), _moves(runs)
        least = min((points[-1][1] for points in tokens.values()), default=0.0)
        near = {a: p for a, p in tokens.items() if p[-1][1] <= MOST_TIMES * least}
        what = f"{n} devices, mean of {len(runs)} seeds"
        plots[f"paper-{n}-latency"] = curves(
            f"Seconds so far, moves included, {what}", "tokens", "s", near
        )
        plots[f"paper-{n}-moves"] = curves(
            f"Moves so far, {what}", "tokens", "moves", moves, steps=True
        )
    for first in _firsts(instances):
        n = first.job.n_devices
        held = {
            a: [b / 1e6 for b in r.held_bytes]
            for a, r in first.runs.items()
            if n <= MAX_DEVICES or a in FEW
        }
        labels = [f"{j}" if n > MAX_DEVICES else f"device {j}" for j in range(n)]
        title = f"Memory per device at the most, {n} devices, seed {first.job.seed}"
        plots[f"paper-{n}-memory"] = bars(title, "MB", labels, held)
    return plots


def _firsts(instances: Sequence[Instance]) -> list[Instance]:
    """Return the whole run of the first seed for each number of devices."""
    firsts: dict[int, Instance] = {}
    for instance in instances:
        if instance.job.part == "run":
            firsts.setdefault(instance.job.n_devices, instance)
    return list(firsts.values())


def _tokens(instances: Sequence[Instance]) -> dict[str, list[tuple[float, float]]]:
    """Return the mean seconds until each token, by algorithm that always had a placement."""
    result = {}
    for algorithm in instances[0].runs if instances else ():
        runs = [i.runs[algorithm] for i in instances]
        if any(r.infeasible_at is not None for r in runs):
            continue
        total_s, points = 0.0, [(0.0, 0.0)]
        for k, each_s in enumerate(zip(*(r.token_s for r in runs), strict=True)):
            total_s += statistics.fmean(each_s)
            points.append((k + 1.0, total_s))
        result[algorithm] = points
    return result


def _moves(instances: Sequence[Instance]) -> dict[str, list[tuple[float, float]]]:
    """Return the mean number of moves until each token, of algorithms that move at all."""
    result = {}
    for algorithm in instances[0].runs if instances else ():
        moved = sorted(k for i in instances for k in i.runs[algorithm].moved)
        if moved and algorithm != "exact-and-jump":
            points = [(k, (n + 1) / len(instances)) for n, k in enumerate(moved)]
            result[algorithm] = [(0.0, 0.0), *points, (instances[0].job.n_tokens, points[-1][1])]
    return result
