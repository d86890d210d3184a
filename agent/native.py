"""ZeroMQ's own functions and the clock, called from compiled code.

Between two phases an agent has some ten microseconds of work; pyzmq's wrappers and Python around
them take more than that. Compiled code therefore sends and receives through libzmq's C functions,
which it gets as addresses (`zmq_calls`), on sockets that pyzmq has made and Python still owns.
Everything that is not ordinary is left to Python (`hot`, `hot_link`).
"""

import errno
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq
from llvmlite import ir
from numba import types

from agent.zmq_calls import ERRNO, GETSOCKOPT, RECV, SEND
from kernels.clock import lower_clock
from kernels.jit import inner
from kernels.lowering import element_address, operation

__all__ = ["DONT_WAIT", "MORE", "has_more", "note", "now_ns", "receive", "send", "u32_at"]

I64Array = npt.NDArray[np.int64]
U8Array = npt.NDArray[np.uint8]

MORE = int(zmq.SNDMORE)
DONT_WAIT = int(zmq.NOBLOCK)
_EINTR = errno.EINTR
_RCVMORE = int(zmq.RCVMORE)


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
    """Return the monotonic clock in nanoseconds; unlike that of kernels, without JIT too."""
    return time.monotonic_ns()


operation(now_ns, types.int64)(lower_clock)


@inner
def send(calls: I64Array, socket: int, buffer: U8Array, first: int, n: int, flags: int) -> int:
    """Send buffer[first : first + n] as one part; returns its size, or -errno."""
    while True:
        sent = _transfer(calls[SEND], socket, buffer, first, n, flags)
        if sent >= 0:
            return sent
        error = _errno(calls[ERRNO])
        if error != _EINTR:
            return -error


@inner
def receive(calls: I64Array, socket: int, buffer: U8Array, first: int, n: int) -> int:
    """Receive one part into buffer[first : first + n]; returns its size, or -errno.

    A part that is larger than n is cut, and its whole size returned. A signal ends the wait with
    -EINTR, so that Python can look after it.
    """
    got = _transfer(calls[RECV], socket, buffer, first, n, 0)
    return got if got >= 0 else -_errno(calls[ERRNO])


@inner
def has_more(calls: I64Array, socket: int) -> bool:
    """Tell whether the part that was received last is followed by another one of its message."""
    return _get_flag(calls[GETSOCKOPT], socket, _RCVMORE) != 0


@inner
def note(ring: I64Array, first: int, second: int) -> None:
    """Add a pair to the ring of a `samples.Samples`."""
    at = 1 + 2 * (ring[0] % ((ring.size - 1) // 2))
    ring[at] = first
    ring[at + 1] = second
    ring[0] += 1


@inner
def u32_at(data: U8Array, at: int) -> int:
    """Return the number that the four bytes from a place on are."""
    value = 0
    for i in range(4):
        value += int(data[at + i]) << (8 * i)
    return value
