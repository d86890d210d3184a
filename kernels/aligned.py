"""Arrays that start where a cache line does."""

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.layout import ALIGN_BYTES

__all__ = ["aligned_zeros"]


def aligned_zeros(n: int, dtype: Any) -> npt.NDArray[Any]:
    """Return n zeros (n,) of dtype, the first of them at a multiple of ALIGN_BYTES."""
    n_bytes = n * np.dtype(dtype).itemsize
    raw = np.zeros(n_bytes + ALIGN_BYTES, np.uint8)
    skip = -raw.ctypes.data % ALIGN_BYTES
    return raw[skip : skip + n_bytes].view(dtype)
