"""The frozen interval as a mixed-integer programme, solved by HiGHS: a second opinion.

Needs scipy (`pip install --group simulate`); nothing but cross-checks uses it.
"""

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from coordinator.planner.blocks import BlockCosts

__all__ = ["milp_delay_s"]

Floats = npt.NDArray[np.float64]


def milp_delay_s(costs: BlockCosts) -> float | None:
    """Return the least D_T of an interval, or None if nothing fits.

    Variables: q[p, f] = 1 where proj is on p and ffn on f; z[j, p] = heads on j if proj is on p;
    t >= z[j, p] unit_s[j, p]. Minimise t + sum q (proj + link + ffn), under memory. Times are
    scaled to about 1, as the solver's tolerances are absolute.

    Raises:
        ModuleNotFoundError: scipy is not installed.
    """
    optimize: Any = importlib.import_module("scipy.optimize")
    n, h = costs.n_devices, costs.n_heads
    pair_s = costs.proj_s[:, None] + costs.proj_link_s + costs.ffn_s[None, :]
    unit_s = costs.head_s[:, None] + costs.head_link_s
    scale_s = float(pair_s.min())
    objective = np.concatenate([pair_s.ravel() / scale_s, np.zeros(n * n), [1.0]])
    rows, low, high = _rows(costs, unit_s / scale_s)
    result = optimize.milp(
        objective,
        constraints=optimize.LinearConstraint(rows, low, high),
        integrality=np.concatenate([np.ones(2 * n * n), [0.0]]),
        bounds=optimize.Bounds(
            np.zeros(2 * n * n + 1), np.concatenate([np.ones(n * n), np.full(n * n, h), [np.inf]])
        ),
        options={"mip_rel_gap": 1e-9},
    )
    return None if result.x is None else float(result.fun) * scale_s


def _rows(costs: BlockCosts, unit: Floats) -> tuple[Floats, Floats, Floats]:
    """Return rows of [q, z, t], and the lowest and highest value of each row."""
    n, h = costs.n_devices, costs.n_heads
    room = np.maximum(costs.room_bytes, 0) / costs.head_bytes
    q, z = np.eye(n * n), np.eye(n * n)
    none = np.zeros((n * n, n * n))
    by_row = np.kron(np.eye(n), np.ones((1, n)))
    by_column = np.kron(np.ones((1, n)), np.eye(n))
    one = np.concatenate([np.ones(n * n), np.zeros(n * n + 1)])[None, :]
    all_heads = np.concatenate([np.zeros(n * n), np.ones(n * n), [0.0]])[None, :]
    # z[j, p] <= h sum_f q[p, f]
    proj_of = np.kron(np.ones((n, 1)), by_row)
    follows = np.hstack([-h * proj_of, z, np.zeros((n * n, 1))])
    slowest = np.hstack([none, z * unit.ravel(), -np.ones((n * n, 1))])
    memory = np.hstack(
        [
            (costs.proj_bytes * by_row + costs.ffn_bytes * by_column) / costs.head_bytes @ q,
            by_row,
            np.zeros((n, 1)),
        ]
    )
    rows = np.vstack([one, all_heads, follows, slowest, memory])
    low = np.concatenate([[1.0], [float(h)], np.full(2 * n * n + n, -np.inf)])
    high = np.concatenate([[1.0], [float(h)], np.zeros(2 * n * n), room])
    return rows, low, high
