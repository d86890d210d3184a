"""Activations as signed bytes: what int8 products read.

For each block of 32 values, with m = max |x| of the block:

    scale = m / 127        q = rint(x * (127 / m))  in -127 .. 127        x ~ q * scale

A block takes 10 float32 elements: 8 that hold the 32 bytes in order, the scale, and the bits of the
int32 sum of the bytes, by which targets that shift weights correct their sums. Blocks are
those of the weights' tiles, so they restart at every atom and a row does not depend on what else
a member holds. A block with NaN or infinity gets the scale NaN, and so do the sums it enters.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from kernels.jit import inner
from kernels.simd import add, largest, load, max8, scale, sum8, zero
from kernels.simd_dot import absolute, byte_sum, store_bytes
from kernels.spans import Span

__all__ = ["BLOCK_FLOATS", "quantise", "quantises"]

BLOCK_FLOATS = 10
# Below it 127 / max could overflow; such a block counts as zeros.
_TINY = np.float32(1e-30)


@inner
def quantise(x: Span, n_blocks: int, q: Span) -> None:
    """Write n_blocks blocks of 32 values of x to q, 10 elements each."""
    for block in range(n_blocks):
        source, target = x.first + 32 * block, q.first + BLOCK_FLOATS * block
        top, odd = zero(), zero()
        for i in range(0, 32, 8):
            v = load(x.values, source + i)
            top = largest(absolute(v), top)
            odd = add(odd, scale(v, zero()))  # 0, or NaN if v is not finite
        m = max8(top)
        factor = np.float32(np.float32(127.0) / m) if m > _TINY else np.float32(0.0)
        for i in range(0, 32, 8):
            store_bytes(x.values, source + i, factor, q.values, target + i // 4)
        byte_sum(q.values, target, q.values, target + 9)
        q.values[target + 8] = np.float32(np.float32(m / np.float32(127.0)) + sum8(odd))


def quantises(w: Any) -> bool:
    """Tell whether activations are quantised for a store of this dtype; constant when compiled."""
    return bool(w.dtype in (np.int64, np.uint64))


@overload(quantises)
def _quantises(w: Any) -> Any:
    return _yes if w.dtype in (types.int64, types.uint64) else _no


def _yes(w: Any) -> bool:
    return True


def _no(w: Any) -> bool:
    return False
