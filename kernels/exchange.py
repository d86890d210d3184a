"""The arithmetic of an exchange: partial sums to wire numbers and back, added with a check.

    residual[row] += partial[row]            in the order of the calls (rank order)

float16 travels as uint16 bits. Sources may be read-only; nothing is allocated.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.half import bits_of, from_half, from_stored, to_half
from kernels.jit import inner, kernel

__all__ = [
    "add_partials",
    "decode_flat",
    "encode_flat",
]

F32Array = npt.NDArray[np.float32]
U16Array = npt.NDArray[np.uint16]

_EXPONENT = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


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


@kernel
def encode_flat(source: F32Array, target: U16Array) -> None:
    """Write float32 values as float16 bits; (n,) both, nothing is checked, see `wire_floats`."""
    for i in range(source.size):
        target[i] = to_half(source[i])


@kernel
def decode_flat(source: U16Array, target: F32Array) -> None:
    """Write float16 bits as float32 values; (n,) both, nothing is checked, see `wire_floats`."""
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
