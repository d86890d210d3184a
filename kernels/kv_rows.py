"""One position's key or value as a page keeps it: float32, float16 bits, or bytes and a scale.

For bytes, with m = max |x| over the d numbers of one position:

    scale = m / 127        B[j] = rint(x[j] * (127 / m))  in -127 .. 127        x[j] ~ B[j] * scale

as `quantise` does with activations. So scores are (q . B) * scale, and weights times scale go into
the weighted sum of B: the loops over pages are those of the other formats. A row with NaN or
infinity gets the scale NaN, and so do the sums it enters.

Each function does what the dtype of `values`, the pool, asks for; it is chosen when compiled.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from kernels.half import bits_of, float_of, to_stored
from kernels.jit import inner
from kernels.simd import load, scale, store
from kernels.spans import F32Array, Span

__all__ = ["keep_row", "multiply_scales"]

AnyArray = npt.NDArray[Any]

_U32 = np.uint32
_MAGNITUDE = _U32(0x7FFFFFFF)
_INFINITY = _U32(0x7F800000)
# Below it 127 / max could overflow; such a row counts as zeros.
_TINY = np.float32(1e-30)


def keep_row(
    values: AnyArray, first: int, step: int, scales: F32Array, at: int, x: Span, n: int
) -> None:
    """Write x (n,) to values[first], values[first + step], .. and of bytes the scale to scales[at].

    Args:
        values: the pool, written.
        first: element of x[0].
        step: from one number to the next.
        scales: the pool as float32, written.
        at: element of the scale; of no account unless values are bytes.
        x: the row.
        n: how many numbers.
    """
    keep = _keep_bytes if values.dtype == np.int8 else _keep_floats
    keep(values, first, step, scales, at, x, n)


def multiply_scales(
    values: AnyArray, scales: F32Array, at: int, x: AnyArray, i: int, n: int
) -> None:
    """Multiply x[i], x[i + 1], .. by scales[at], scales[at + 1], ..; nothing unless bytes are kept.

    Args:
        values: the pool.
        scales: the pool as float32.
        at: element of the first scale.
        x: float32, written.
        i: element of the first product.
        n: how many products; a last eight is done whole.
    """
    if values.dtype == np.int8:
        _multiply(values, scales, at, x, i, n)


@inner
def _keep_floats(
    values: AnyArray, first: int, step: int, scales: F32Array, at: int, x: Span, n: int
) -> None:
    for j in range(n):
        values[first + step * j] = to_stored(values, x.values[x.first + j])


@inner
def _keep_bytes(
    values: AnyArray, first: int, step: int, scales: F32Array, at: int, x: Span, n: int
) -> None:
    # As integers, sizes are in the order of their numbers, with infinity and NaN behind them.
    top = _U32(0)
    for j in range(n):
        top = max(top, _U32(bits_of(x.values[x.first + j]) & _MAGNITUDE))
    if top >= _INFINITY:
        scales[at] = np.float32(np.nan)
        for j in range(n):
            values[first + step * j] = 0
        return
    largest = float_of(top)
    scales[at] = np.float32(largest / np.float32(127))
    factor = np.float32(np.float32(127) / largest) if largest > _TINY else np.float32(0)
    for j in range(n):
        values[first + step * j] = np.int8(np.rint(np.float32(x.values[x.first + j] * factor)))


@inner
def _multiply(values: AnyArray, scales: F32Array, at: int, x: AnyArray, i: int, n: int) -> None:
    for p in range(0, n, 8):
        store(x, i + p, scale(load(x, i + p), load(scales, at + p)))


@overload(keep_row)
def _keep_row_dtype(
    values: Any, first: Any, step: Any, scales: Any, at: Any, x: Any, n: Any
) -> Any:
    return _bytes if values.dtype == types.int8 else _floats


def _bytes(values: Any, first: Any, step: Any, scales: Any, at: Any, x: Any, n: Any) -> None:
    _keep_bytes(values, first, step, scales, at, x, n)


def _floats(values: Any, first: Any, step: Any, scales: Any, at: Any, x: Any, n: Any) -> None:
    _keep_floats(values, first, step, scales, at, x, n)


@overload(multiply_scales)
def _multiply_scales_dtype(values: Any, scales: Any, at: Any, x: Any, i: Any, n: Any) -> Any:
    return _products if values.dtype == types.int8 else _nothing


def _products(values: Any, scales: Any, at: Any, x: Any, i: Any, n: Any) -> None:
    _multiply(values, scales, at, x, i, n)


def _nothing(values: Any, scales: Any, at: Any, x: Any, i: Any, n: Any) -> None:
    pass
