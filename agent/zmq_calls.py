"""Addresses of libzmq's functions for compiled code (`native`)."""

import ctypes
import os

import numpy as np
import numpy.typing as npt

from kernels.mode import BOUNDS_CHECKED, JIT_DISABLED

__all__ = ["ERRNO", "GETSOCKOPT", "PLAIN_VARIABLE", "RECV", "SEND", "find_calls"]

I64Array = npt.NDArray[np.int64]

# Places of the functions in an array of calls.
SEND, RECV, GETSOCKOPT, ERRNO = range(4)
_NAMES = ("zmq_send", "zmq_recv", "zmq_getsockopt", "zmq_errno")

# Set to 1 to leave every frame to Python, as on systems without a libzmq that can be called.
PLAIN_VARIABLE = "HEADWISE_PLAIN_EXCHANGE"


def find_calls() -> I64Array | None:
    """Return the addresses of libzmq's functions, (4,) int64; None if they cannot be called."""
    # With bounds checks kernels may raise, which compiled loops cannot tell anybody.
    if JIT_DISABLED or BOUNDS_CHECKED or os.environ.get(PLAIN_VARIABLE, "") not in ("", "0"):
        return None
    try:
        from zmq.backend.cython import _zmq

        # A handle of pyzmq's extension also finds what that is linked with.
        library = ctypes.CDLL(_zmq.__file__)
        functions = [getattr(library, name) for name in _NAMES]
    except (ImportError, OSError, AttributeError):
        return None
    return np.array([ctypes.cast(f, ctypes.c_void_p).value for f in functions], np.int64)
