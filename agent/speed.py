"""How fast this board's own kernels read weights: what HELLO tells the planner.

Decode is bound by memory bandwidth, so bytes per second say more than FLOPS.
"""

import time

import numpy as np

from agent.warm import synthetic_stage, warm_kernels
from kernels.layout import Geometry, WeightFormat
from kernels.pool import Pool

__all__ = ["measure_bytes_per_s"]

# 30 MB of weights: no small board caches that.
MEASURED = Geometry(
    hidden_size=1024, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=32, n_columns=9600,
    vocab_size=1, fmt=WeightFormat.Q8, norm_eps=1e-5,
)  # fmt: skip
MEASURE_S = 0.05


def measure_bytes_per_s(n_threads: int) -> float:
    """Return how many bytes of q8 weights a second this board's MLP kernel reads."""
    warm_kernels(MEASURED, "f16", True)
    pool = Pool(n_threads)
    try:
        kernels = synthetic_stage(MEASURED, "f16", pool, 0, 0, True)
        x = np.ones((1, MEASURED.hidden_size), np.float32)
        out = np.zeros_like(x)
        kernels.mlp(0, x, out)  # brings the weights in
        n_bytes = MEASURED.n_column_atoms * MEASURED.column_bytes
        best_s, spent_s = float("inf"), 0.0
        while spent_s < MEASURE_S:
            started_s = time.perf_counter()
            kernels.mlp(0, x, out)
            took_s = time.perf_counter() - started_s
            best_s, spent_s = min(best_s, took_s), spent_s + took_s
        return n_bytes / best_s
    finally:
        pool.close()
