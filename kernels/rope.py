"""Rotary position embedding, half-split (the Hugging Face convention).

    angle[i] = position * inv_freq[i]                                          i in 0 .. d/2
    y[i]       = x[i] * cos[i] - x[i + d/2] * sin[i]
    y[i + d/2] = x[i + d/2] * cos[i] + x[i] * sin[i]

Angles, cosines and sines are computed in float64 once per step, multiplied by the attention
factor of scaled variants, and rounded to float32.
"""

import math

import numpy as np
import numpy.typing as npt

from kernels.jit import inner
from kernels.simd import add, less, load, scale, store
from kernels.spans import Span

__all__ = ["rotate", "rotation_row"]

F64Array = npt.NDArray[np.float64]


@inner
def rotation_row(inv_freq: F64Array, position: int, factor: float, turn: Span) -> None:
    """Write cos (d/2), then sin (d/2) of one position, times factor, to turn."""
    half = inv_freq.size
    for i in range(half):
        angle = position * inv_freq[i]
        turn.values[turn.first + i] = np.float32(math.cos(angle) * factor)
        turn.values[turn.first + half + i] = np.float32(math.sin(angle) * factor)


@inner
def rotate(x: Span, head_dim: int, turn: Span) -> None:
    """Rotate the head x (d,) in place by a turn that `rotation_row` wrote."""
    half = head_dim // 2
    v, t = x.values, turn.values
    for i in range(0, half - 7, 8):
        at, cos, sin = x.first + i, load(t, turn.first + i), load(t, turn.first + half + i)
        a, b = load(v, at), load(v, at + half)
        store(v, at, less(scale(a, cos), scale(b, sin)))
        store(v, at + half, add(scale(b, cos), scale(a, sin)))
    for i in range(half - half % 8, half):
        cos_i, sin_i = t[turn.first + i], t[turn.first + half + i]
        p, q = v[x.first + i], v[x.first + half + i]
        v[x.first + i] = np.float32(np.float32(p * cos_i) - np.float32(q * sin_i))
        v[x.first + half + i] = np.float32(np.float32(q * cos_i) + np.float32(p * sin_i))
