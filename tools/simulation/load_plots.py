"""Plots of one run under changing load: speed, moves and memory over time."""

from collections.abc import Mapping
from itertools import accumulate

from tools.simulation.load import Outcome
from tools.simulation.svg import curves

__all__ = ["load_plots"]


def load_plots(
    dwell_s: float, seed: int, duration_s: float, outcomes: Mapping[str, Outcome]
) -> dict[str, str]:
    """Return SVG plots by name, from the outcome of each policy on one trace."""
    where = f"dwell {dwell_s:g} s, seed {seed}"
    name = f"load-{dwell_s:g}s"
    speeds = {
        p: [((k + 0.5) * duration_s / len(o.curve), y) for k, y in enumerate(o.curve)]
        for p, o in outcomes.items()
    }
    moves = {}
    for policy, outcome in outcomes.items():
        if policy == "oracle":
            continue
        total = list(accumulate(c.moved_bytes / 1e9 for c in outcome.changes))
        steps = [(c.at_s, y) for c, y in zip(outcome.changes, total, strict=True)]
        moves[policy] = [*steps, (duration_s, total[-1])]
    changes = outcomes["moved"].changes
    memory = {
        f"board {j}": [
            *((c.at_s, c.held_bytes[j] / 1e6) for c in changes),
            (duration_s, changes[-1].held_bytes[j] / 1e6),
        ]
        for j in range(len(changes[0].held_bytes))
    }
    return {
        f"{name}-speed": curves(f"Tokens per second, {where}", "s", "tokens/s", speeds),
        f"{name}-moves": curves(f"Bytes moved, {where}", "s", "GB, total", moves, steps=True),
        f"{name}-memory": curves(
            f"Memory per board, weights moved, {where}", "s", "MB", memory, steps=True
        ),
    }
