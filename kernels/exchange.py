"""The arithmetic of an exchange: partial sums to wire numbers and back, added with a check.

    residual[row] += partial[row]            in the order of the calls (rank order)

float16 travels as uint16 bits. Sources may be read-only; nothing is allocated.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.errors import InputError
from kernels.half import bits_of, from_half, to_half
from kernels.jit import kernel

__all__ = [
    "add_partial",
    "add_partials",
    "add_slots_f16",
    "add_slots_f32",
    "decode_f16",
    "decode_flat",
    "encode_f16",
    "encode_flat",
]

F32Array = npt.NDArray[np.float32]
U16Array = npt.NDArray[np.uint16]

_EXPONENT = np.uint32(0x7F800000)


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


def add_partial(residual: F32Array, partial: npt.NDArray[Any]) -> bool:
    """Add a partial sum to the residual in place.

    Args:
        residual: (n_rows, D) float32, C-contiguous.
        partial: as many float32 values or uint16 float16 bits, C-contiguous.

    Returns:
        False if a value of the partial or of the new residual is NaN or infinite.

    Raises:
        InputError: another dtype, another size or arrays that are not contiguous and aligned.
    """
    flat = _target(residual, np.float32)
    if partial.dtype == np.uint16:
        return _add_f16(_source(partial, np.uint16, flat.size), flat)
    return _add_f32(_source(partial, np.float32, flat.size), flat)


def add_partials(
    residual: F32Array, inbox: npt.NDArray[Any], slots: npt.NDArray[np.int32], first: int
) -> int:
    """Add the partial sums of all members to the residual in place, in the order of `slots`.

    The hot path of whoever holds the residual: one call a phase, so nothing is checked here.

    Args:
        residual: (n,) float32, C-contiguous, written.
        inbox: (n_slots, capacity) uint16 float16 bits or float32; row s holds one reply.
        slots: (n_members,) int32, the inbox rows to add, in rank order.
        first: where the n values of a reply start in its row, in elements.

    Returns:
        How many members were added before one with a NaN or infinite value or sum: len(slots)
        if all values are finite.
    """
    add = add_slots_f16 if inbox.dtype == np.uint16 else add_slots_f32
    return add(residual, inbox, slots, first)


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


@kernel
def _add_f32(source: F32Array, residual: F32Array) -> bool:
    bad = np.uint32(0)
    for i in range(source.size):
        x = source[i]
        total = np.float32(residual[i] + x)
        residual[i] = total
        bad |= np.uint32((bits_of(total) & _EXPONENT) == _EXPONENT)
        bad |= np.uint32((bits_of(x) & _EXPONENT) == _EXPONENT)
    return bool(bad == 0)


@kernel
def _add_f16(source: U16Array, residual: F32Array) -> bool:
    bad = np.uint32(0)
    for i in range(source.size):
        x = from_half(source[i])
        total = np.float32(residual[i] + x)
        residual[i] = total
        bad |= np.uint32((bits_of(total) & _EXPONENT) == _EXPONENT)
        bad |= np.uint32((bits_of(x) & _EXPONENT) == _EXPONENT)
    return bool(bad == 0)


@kernel
def add_slots_f16(
    residual: F32Array, inbox: U16Array, slots: npt.NDArray[np.int32], first: int
) -> int:
    """Do `add_partials` for float16 bits."""
    for k in range(slots.size):
        source = inbox[slots[k]][first : first + residual.size]
        if not _add_f16(source, residual):
            return k
    return slots.size


@kernel
def add_slots_f32(
    residual: F32Array, inbox: F32Array, slots: npt.NDArray[np.int32], first: int
) -> int:
    """Do `add_partials` for float32."""
    for k in range(slots.size):
        source = inbox[slots[k]][first : first + residual.size]
        if not _add_f32(source, residual):
            return k
    return slots.size
