"""The arithmetic of an exchange: partial sums to wire numbers and back, added with a check.

    residual[row] += partial[row]            in the order of the calls (rank order)

float16 travels as uint16 bits. Sources may be read-only; nothing is allocated.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.errors import InputError
from kernels.half import bits_of, from_half, from_stored, to_half
from kernels.jit import inner, kernel

__all__ = [
    "add_partials",
    "decode_f16",
    "decode_flat",
    "encode_f16",
    "encode_flat",
]

F32Array = npt.NDArray[np.float32]
U16Array = npt.NDArray[np.uint16]

_EXPONENT = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


def encode_f16(source: F32Array, target: U16Array) -> None:
    """Write float32 values as float16 bits.

    Args:
        source: (...) float32, C-contiguous.
        target: as many uint16 elements, C-contiguous, written.

    Raises:
        InputError: another dtype, another size or arrays that are not contiguous and aligned.
    """
    encode_flat(_source(source, np.float32, target.size), _target(target, np.uint16))


def decode_f16(source: U16Array, target: F32Array) -> None:
    """Write float16 bits as float32 values; the counterpart of `encode_f16`."""
    decode_flat(_source(source, np.uint16, target.size), _target(target, np.float32))


@kernel
def add_partials(
    residual: F32Array,
    inbox: npt.NDArray[Any],
    slots: npt.NDArray[np.int32],
    first: int,
    limits: F32Array,
) -> int:
    """Add the partial sums of all members to the residual in place, in the order of `slots`.

    The hot path of whoever holds the residual: one call a phase, so nothing is checked here.

    Args:
        residual: (n,) float32, C-contiguous, written.
        inbox: (n_slots, capacity) uint16 float16 bits or float32; row s holds one reply.
        slots: (n_members,) int32, the inbox rows to add, in rank order.
        first: where the n values of a reply start in its row, in elements.
        limits: (n_members,) float32, >= 0, finite: the largest magnitude that each one's values
            may have.

    Returns:
        How many members were added before one with a value that is NaN or beyond its limit, or
        a sum that is not finite: len(slots) if all is well.
    """
    for k in range(slots.size):
        if not _add(inbox[slots[k]][first : first + residual.size], residual, limits[k]):
            return k
    return slots.size


def _source(array: npt.NDArray[Any], dtype: Any, n: int) -> npt.NDArray[Any]:
    """Return the array flat and read-only, so that each kernel has one specialisation."""
    flags = array.flags
    if array.dtype != dtype or array.size != n or not (flags.c_contiguous and flags.aligned):
        raise InputError(
            f"expected {n} contiguous, aligned {np.dtype(dtype)} values,"
            f" got {array.dtype} of shape {array.shape}"
        )
    flat = array.reshape(-1)
    flat = flat[:] if flat is array else flat
    flat.flags.writeable = False
    return flat


def _target(array: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
    """Return the array flat after checking that it can be written."""
    if array.dtype != dtype or not array.flags.carray:
        raise InputError(
            f"expected a writable, contiguous, aligned {np.dtype(dtype)} array,"
            f" got {array.dtype} of shape {array.shape}"
        )
    return array.reshape(-1)


@kernel
def encode_flat(source: F32Array, target: U16Array) -> None:
    """Write float32 values as float16 bits; (n,) both, nothing is checked, see `encode_f16`."""
    for i in range(source.size):
        target[i] = to_half(source[i])


@kernel
def decode_flat(source: U16Array, target: F32Array) -> None:
    """Write float16 bits as float32 values; (n,) both, nothing is checked, see `decode_f16`."""
    for i in range(source.size):
        target[i] = from_half(source[i])


@inner
def _add(source: npt.NDArray[Any], residual: F32Array, limit: Any) -> bool:
    """Add one partial sum; tell whether its values are within the limit and the sums finite."""
    # Bits of floats without sign are in the order of their magnitudes; inf and NaN come last.
    largest = bits_of(limit)
    bad = np.uint32(0)
    for i in range(source.size):
        x = from_stored(source, i)
        total = np.float32(residual[i] + x)
        residual[i] = total
        bad |= np.uint32((bits_of(total) & _EXPONENT) == _EXPONENT)
        bad |= np.uint32((bits_of(x) & _MAGNITUDE) > largest)
    return bool(bad == 0)
