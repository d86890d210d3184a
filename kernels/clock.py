"""A clock that compiled code can read: libc's, of the same rate on all cores and machines."""

import platform
from typing import Any

from llvmlite import ir
from numba import types

from kernels.lowering import cgutils, operation

__all__ = ["lower_clock", "now_ns"]

_I64, _I32 = ir.IntType(64), ir.IntType(32)
_MONOTONIC = {"Darwin": 6}.get(platform.system(), 1)


def now_ns() -> int:
    """Return the monotonic clock in nanoseconds; takes some 50 ns.

    0 with JIT switched off: then there is one thread, and nobody waits.
    """
    return 0


def lower_clock(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Compile a call that returns the monotonic clock in nanoseconds, that of time.monotonic_ns."""
    timespec = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
    ftype = ir.FunctionType(_I32, [_I32, timespec.type])
    name = "clock_gettime"
    function = builder.module.globals.get(name) or ir.Function(builder.module, ftype, name)
    builder.call(function, [_I32(_MONOTONIC), timespec])
    seconds, nanoseconds = (
        builder.load(builder.gep(timespec, [_I32(0), _I32(i)])) for i in range(2)
    )
    return builder.add(builder.mul(seconds, _I64(1_000_000_000)), nanoseconds)


operation(now_ns, types.int64)(lower_clock)
