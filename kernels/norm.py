"""RMSNorm.

    y[i] = x[i] / sqrt(mean over i of x[i]^2 + eps) * gain[i]        x, y, gain (n,)

The squares are summed in 8 lanes (i mod 8), then the lanes in rising order, then the last n mod 8
elements: one order for every caller.
"""

import numpy as np

from kernels.jit import inner
from kernels.simd import add, load, scale, store, sum8, times, zero
from kernels.spans import Span

__all__ = ["rms_norm"]


@inner
def rms_norm(x: Span, gain: Span, n: int, eps: float, y: Span) -> None:
    """Write the n normalised values of x to y, which may be x itself.

    Args:
        x: n values.
        gain: n values.
        n: length of the normalised vector.
        eps: added to the mean square.
        y: n values, written.
    """
    lanes = zero()
    for i in range(0, n - 7, 8):
        v = load(x.values, x.first + i)
        lanes = add(lanes, scale(v, v))
    total = sum8(lanes)
    for i in range(n - n % 8, n):
        one = x.values[x.first + i]
        total = np.float32(total + np.float32(one * one))
    mean = np.float32(total / np.float32(n))
    factor = np.float32(np.float32(1.0) / np.sqrt(np.float32(mean + np.float32(eps))))
    for i in range(0, n - 7, 8):
        scaled_lanes = times(load(x.values, x.first + i), factor)
        store(y.values, y.first + i, scale(scaled_lanes, load(gain.values, gain.first + i)))
    for i in range(n - n % 8, n):
        scaled = np.float32(x.values[x.first + i] * factor)
        y.values[y.first + i] = np.float32(scaled * gain.values[gain.first + i])
