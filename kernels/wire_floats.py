"""Numbers of an exchange to float16 bits and back, their arrays checked; see `exchange`."""

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.entries import decode_flat, encode_flat
from kernels.errors import InputError

__all__ = ["decode_f16", "encode_f16"]

F32Array = npt.NDArray[np.float32]
U16Array = npt.NDArray[np.uint16]


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
