"""ZeroMQ's own functions and the clock, called from compiled code.

Between two phases an agent has some ten microseconds of work; pyzmq's wrappers and Python around
them take more than that. Compiled code therefore sends and receives through libzmq's C functions,
which it gets as addresses, on sockets that pyzmq has made and Python still owns. Everything that
is not ordinary is left to Python (`hot`, `hot_link`).
"""

import ctypes
import errno
import os
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq
from llvmlite import ir
from numba import config as _config
from numba import types

from kernels.jit import JIT_DISABLED, inner
from kernels.lowering import element_address, operation

__all__ = ["DONT_WAIT", "MORE", "find_calls", "has_more", "now_ns", "receive", "send"]

# numba is typed in parts only.
config: Any = _config

I64Array = npt.NDArray[np.int64]
U8Array = npt.NDArray[np.uint8]

MORE = int(zmq.SNDMORE)
DONT_WAIT = int(zmq.NOBLOCK)
_EINTR = errno.EINTR
_RCVMORE = int(zmq.RCVMORE)
_CLOCK_MONOTONIC = 1

# Places of the functions in an array of calls.
_SEND, _RECV, _GETSOCKOPT, _ERRNO = range(4)
_NAMES = ("zmq_send", "zmq_recv", "zmq_getsockopt", "zmq_errno")

# Set to 1 to leave every frame to Python, as on systems without a libzmq that can be called.
PLAIN_VARIABLE = "HEADWISE_PLAIN_EXCHANGE"


def find_calls() -> I64Array | None:
    """Return the addresses of libzmq's functions, (4,) int64; None if they cannot be called."""
    # With bounds checks kernels may raise, which compiled loops cannot tell anybody.
    if JIT_DISABLED or config.BOUNDSCHECK or os.environ.get(PLAIN_VARIABLE, "") not in ("", "0"):
        return None
    try:
        from zmq.backend.cython import _zmq

        # A handle of pyzmq's extension also finds what that is linked with.
        library = ctypes.CDLL(_zmq.__file__)
        functions = [getattr(library, name) for name in _NAMES]
    except (ImportError, OSError, AttributeError):
        return None
    return np.array([ctypes.cast(f, ctypes.c_void_p).value for f in functions], np.int64)


_I32, _I64 = ir.IntType(32), ir.IntType(64)
_POINTER = ir.IntType(8).as_pointer()


def _transfer(function: int, socket: int, buffer: U8Array, first: int, n: int, flags: int) -> int:
    """Call zmq_send or zmq_recv on buffer[first : first + n]."""
    raise NotImplementedError("only compiled code calls libzmq")


def _errno(function: int) -> int:
    """Call zmq_errno."""
    raise NotImplementedError("only compiled code calls libzmq")


def _get_flag(function: int, socket: int, option: int) -> int:
    """Call zmq_getsockopt for an option of type int."""
    raise NotImplementedError("only compiled code calls libzmq")


@operation(
    _transfer, types.int64, types.Integer, types.Integer, types.Array, types.Integer,
    types.Integer, types.Integer,
)  # fmt: skip
def _lower_transfer(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    address, socket, buffer, first, n, flags = args
    data = element_address(context, builder, sig.args[2], buffer, first, 1)
    ftype = ir.FunctionType(_I32, [_POINTER, _POINTER, _I64, _I32])
    function = builder.inttoptr(address, ftype.as_pointer())
    n64 = context.cast(builder, n, sig.args[4], types.int64)
    flags32 = context.cast(builder, flags, sig.args[5], types.int32)
    arguments = [builder.inttoptr(socket, _POINTER), builder.bitcast(data, _POINTER), n64, flags32]
    return builder.sext(builder.call(function, arguments), _I64)


@operation(_errno, types.int64, types.Integer)
def _lower_errno(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    function = builder.inttoptr(args[0], ir.FunctionType(_I32, []).as_pointer())
    return builder.sext(builder.call(function, []), _I64)


@operation(_get_flag, types.int64, types.Integer, types.Integer, types.Integer)
def _lower_get_flag(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    ftype = ir.FunctionType(_I32, [_POINTER, _I32, _POINTER, _POINTER])
    function = builder.inttoptr(args[0], ftype.as_pointer())
    option = context.cast(builder, args[2], sig.args[2], types.int32)
    with builder.goto_entry_block():
        value, size = builder.alloca(_I32), builder.alloca(_I64)
    builder.store(ir.Constant(_I32, 0), value)
    builder.store(ir.Constant(_I64, 4), size)
    pointers = [builder.bitcast(p, _POINTER) for p in (value, size)]
    builder.call(function, [builder.inttoptr(args[1], _POINTER), option, *pointers])
    return builder.sext(builder.load(value), _I64)


def now_ns() -> int:
    """Return the monotonic clock in nanoseconds, the one of time.monotonic_ns."""
    return time.monotonic_ns()


@operation(now_ns, types.int64)
def _now_ns(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    pair = ir.LiteralStructType([_I64, _I64])
    ftype = ir.FunctionType(_I32, [_I32, pair.as_pointer()])
    name = "clock_gettime"  # libc
    function = builder.module.globals.get(name) or ir.Function(builder.module, ftype, name)
    with builder.goto_entry_block():
        spec = builder.alloca(pair)
    builder.call(function, [ir.Constant(_I32, _CLOCK_MONOTONIC), spec])
    seconds = builder.extract_value(builder.load(spec), 0)
    nanoseconds = builder.extract_value(builder.load(spec), 1)
    return builder.add(builder.mul(seconds, ir.Constant(_I64, 1_000_000_000)), nanoseconds)


@inner
def send(calls: I64Array, socket: int, buffer: U8Array, first: int, n: int, flags: int) -> int:
    """Send buffer[first : first + n] as one part; returns its size, or -errno."""
    while True:
        sent = _transfer(calls[_SEND], socket, buffer, first, n, flags)
        if sent >= 0:
            return sent
        error = _errno(calls[_ERRNO])
        if error != _EINTR:
            return -error


@inner
def receive(calls: I64Array, socket: int, buffer: U8Array, first: int, n: int) -> int:
    """Receive one part into buffer[first : first + n]; returns its size, or -errno.

    A part that is larger than n is cut, and its whole size returned. A signal ends the wait with
    -EINTR, so that Python can look after it.
    """
    got = _transfer(calls[_RECV], socket, buffer, first, n, 0)
    return got if got >= 0 else -_errno(calls[_ERRNO])


@inner
def has_more(calls: I64Array, socket: int) -> bool:
    """Tell whether the part that was received last is followed by another one of its message."""
    return _get_flag(calls[_GETSOCKOPT], socket, _RCVMORE) != 0
