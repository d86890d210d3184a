"""Activations as signed bytes: what int8 products read.

For each block of 32 values, with m = max |x| of the block:

    scale = m / 127        q = rint(x * (127 / m))  in -127 .. 127        x ~ q * scale

A block takes 11 float32 elements: 8 that hold the 32 bytes in order, the scale, and the bits of two
int32, -128 and -8 times the sum of the bytes: where products with shifted weights start. Blocks are
those of the weights' tiles, so they restart at every atom and a row does not depend on what else
a member holds. A block with NaN or infinity gets the scale NaN, and so do the sums it enters.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from kernels.formats import BLOCK_FLOATS
from kernels.jit import inner
from kernels.simd_bytes import store_block
from kernels.spans import Span

__all__ = ["quantise", "quantises"]


@inner
def quantise(x: Span, n_blocks: int, q: Span) -> None:
    """Write n_blocks blocks of 32 values of x to q, BLOCK_FLOATS elements each."""
    for block in range(n_blocks):
        store_block(x.values, x.first + 32 * block, q.values, q.first + BLOCK_FLOATS * block)


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
