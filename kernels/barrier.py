"""A barrier for kernels that several threads run together, without the GIL.

`sync` is laid out in `sync_words`. The last thread to arrive starts the next generation. The others
watch for half a millisecond, then sleep on a futex, which frees the CPU for whoever is late. No
sooner: a thread that sleeps comes back late, by 50 us on a virtual machine, and all others wait for
it at the next barrier. Nor later: who is late may be waiting for the rest of another process's time
slice, and threads that sleep meanwhile get their CPUs back together (docs/decisions.md). With JIT
off there is one thread and a barrier is nothing.
"""

import platform
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from kernels import emit
from kernels.clock import now_ns
from kernels.jit import inner
from kernels.lowering import cgutils, element_address, operation
from kernels.sync_words import ABORT, ARRIVED, ASLEEP, CROWDED, GENERATION, LINE
from kernels.target import has

__all__ = [
    "ABORT",
    "BRIEFLY_NS",
    "LINE",
    "WATCH_NS",
    "atomic_add",
    "atomic_load",
    "atomic_store",
    "change",
    "wait",
    "wait_while",
    "watch",
]

I64Array = npt.NDArray[np.int64]

# How long threads watch: where they cannot all run at once, and otherwise.
BRIEFLY_NS, WATCH_NS = 15_000, 500_000
# Looks before the clock is asked again. x86's pause takes 12 to 50 ns, by model.
_LOOKS = 32 if platform.machine() in ("x86_64", "AMD64") else 256
# Whoever sleeps looks again after this time: an abort does not wake it.
_SLEEP_NS = 5_000_000
_FUTEX_CALL = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), -1)
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # of one process only


def atomic_add(words: I64Array, i: int, value: int) -> int:
    """Add to words[i] as one step seen by all threads and return what it held before."""
    before = int(words[i])
    words[i] += value
    return before


def atomic_load(words: I64Array, i: int) -> int:
    """Return words[i]; later reads see what its writer had written before it."""
    return int(words[i])


def atomic_store(words: I64Array, i: int, value: int) -> None:
    """Write words[i] after everything written before it."""
    words[i] = value


def relax() -> None:
    """Leave the core to its other thread for a moment, on CPUs that have such."""


def sleep_while(words: I64Array, i: int, value: int) -> None:
    """Sleep if words[i] still is value, until `wake` or _SLEEP_NS later, or for no reason."""


def wake(words: I64Array, i: int) -> None:
    """Wake all threads that sleep at words[i]."""


@operation(atomic_add, types.int64, types.Array, types.Integer, types.Integer)
def _atomic_add(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    address = element_address(context, builder, sig.args[0], args[0], args[1], 8)
    return builder.atomic_rmw("add", address, args[2], "seq_cst")


@operation(atomic_load, types.int64, types.Array, types.Integer)
def _atomic_load(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    address = element_address(context, builder, sig.args[0], args[0], args[1], 8)
    return builder.load_atomic(address, ordering="seq_cst", align=8)


@operation(atomic_store, types.none, types.Array, types.Integer, types.Integer)
def _atomic_store(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    address = element_address(context, builder, sig.args[0], args[0], args[1], 8)
    builder.store_atomic(args[2], address, ordering="seq_cst", align=8)
    return context.get_dummy_value()


def _call_libc(builder: Any, name: str, *args: Any) -> None:
    """Call a function of libc that takes any arguments and whose result does not matter."""
    ftype = ir.FunctionType(ir.IntType(64), [args[0].type] if args else [], var_arg=bool(args))
    function = builder.module.globals.get(name) or ir.Function(builder.module, ftype, name)
    builder.call(function, args)


def _futex(builder: Any, address: Any, what: int, value: Any, limit: Any) -> None:
    """Call futex, or yield the CPU on a machine whose number of that call we do not know."""
    if _FUTEX_CALL < 0:
        _call_libc(builder, "sched_yield")
        return
    i64 = ir.IntType(64)
    _call_libc(builder, "syscall", i64(_FUTEX_CALL), address, i64(what), value, limit)


@operation(relax, types.none)
def _relax(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    if has("x86"):
        emit.call(builder, "llvm.x86.sse2.pause", ir.VoidType())
    elif has("arm64"):
        emit.call(builder, "llvm.aarch64.hint", ir.VoidType(), ir.IntType(32)(1))  # yield
    return context.get_dummy_value()


@operation(sleep_while, types.none, types.Array, types.Integer, types.Integer)
def _sleep_while(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    address = element_address(context, builder, sig.args[0], args[0], args[1], 8)
    i64 = ir.IntType(64)
    limit = cgutils.alloca_once(builder, ir.ArrayType(i64, 2))
    builder.store(ir.Constant(limit.type.pointee, [0, _SLEEP_NS]), limit)
    # A futex looks at 32 bits: the low ones, first in memory.
    _futex(builder, address, _FUTEX_WAIT, builder.and_(args[2], i64(0xFFFFFFFF)), limit)
    return context.get_dummy_value()


@operation(wake, types.none, types.Array, types.Integer)
def _wake(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    address = element_address(context, builder, sig.args[0], args[0], args[1], 8)
    i64 = ir.IntType(64)
    _futex(builder, address, _FUTEX_WAKE, i64((1 << 31) - 1), ir.Constant(i64.as_pointer(), None))
    return context.get_dummy_value()


@inner
def wait(sync: I64Array, n_threads: int) -> None:
    """Return once all n_threads have called this; at once if the run was aborted."""
    if n_threads == 1:
        return
    generation = atomic_load(sync, GENERATION)
    if atomic_add(sync, ARRIVED, 1) == n_threads - 1:
        atomic_store(sync, ARRIVED, 0)
        change(sync, GENERATION, 1)
        return
    wait_while(sync, GENERATION, generation, True)


@inner
def change(sync: I64Array, i: int, by: int) -> None:
    """Add to sync[i] as one step, and wake whoever sleeps there."""
    atomic_add(sync, i, by)
    # A thread that goes to sleep counts itself before it looks at the word for the last time.
    if atomic_load(sync, ASLEEP) > 0:
        wake(sync, i)


@inner
def watch(sync: I64Array, i: int, value: int, limit_ns: int) -> bool:
    """Look a while whether sync[i] becomes something else than value, or the run is aborted."""
    until_ns = 0
    while True:
        for _ in range(_LOOKS):
            if atomic_load(sync, i) != value or atomic_load(sync, ABORT) != 0:
                return True
            relax()
        time_ns = now_ns()
        if until_ns == 0:
            until_ns = time_ns + limit_ns
        if time_ns >= until_ns:
            return False


@inner
def wait_while(sync: I64Array, i: int, value: int, heeds_abort: bool) -> None:
    """Return once sync[i] is something else than value, or, if that is heeded, at an abort."""
    limit_ns = BRIEFLY_NS if now_ns() < sync[CROWDED] else WATCH_NS
    if watch(sync, i, value, limit_ns) and (heeds_abort or atomic_load(sync, i) != value):
        return
    atomic_add(sync, ASLEEP, 1)
    while atomic_load(sync, i) == value and not (heeds_abort and atomic_load(sync, ABORT) != 0):
        sleep_while(sync, i, value)
    atomic_add(sync, ASLEEP, -1)
