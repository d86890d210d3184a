"""What compiled kernels and their callers agree on: kinds of jobs, formats of weights and rows.

Imports no compiler, so that an agent that runs images of kernels can read it too.
"""

from typing import Any

import numpy as np

from kernels.layout import WeightFormat

__all__ = [
    "ATTENTION",
    "BLOCK_FLOATS",
    "KEPT_FLOATS",
    "LEAST_SUMS",
    "LOGITS",
    "MLP",
    "MOST_HEADS",
    "MOST_SUMS",
    "PANEL_FLOATS",
    "RESIDUAL",
    "kept_floats",
    "weight_dtype",
]

# What one call of `run_stage` does; the sum of several.
ATTENTION, MLP, RESIDUAL, LOGITS = 1, 2, 4, 8
# A quantised block of 32 activations: 8 floats that hold their bytes, its scale, two origins.
BLOCK_FLOATS = 11
# What a thread keeps for `matvec` while many rows go over a block of inputs: weights as float32,
# and for each row the sums of up to 8 tiles.
PANEL_FLOATS = 4096
KEPT_FLOATS = 64
# Query heads that attend in one step; each has scores of its own.
MOST_HEADS = 4
# Column atoms are added up in this many parts at least, where there are so many, and twice as many
# at most; threads work on parts of their own.
LEAST_SUMS = 16
MOST_SUMS = 2 * LEAST_SUMS

_DTYPES: dict[WeightFormat, Any] = {
    WeightFormat.F32: np.float32,
    WeightFormat.F16: np.uint16,
    WeightFormat.Q8: np.int32,
    WeightFormat.Q4: np.uint32,
}
_INT8_DTYPES: dict[WeightFormat, Any] = {WeightFormat.Q8: np.int64, WeightFormat.Q4: np.uint64}


def weight_dtype(fmt: WeightFormat, int8: bool) -> Any:
    """Return as what elements kernels see the store; `int8`: quantise activations if they can."""
    return _INT8_DTYPES.get(fmt, _DTYPES[fmt]) if int8 else _DTYPES[fmt]


def kept_floats(n_rows: int) -> int:
    """Return how much scratch `matvec` takes for that many rows, in steps of 5 or 8.

    Column pairs take less.
    """
    return PANEL_FLOATS + KEPT_FLOATS * -(-n_rows // 40) * 40
