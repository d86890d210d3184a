"""A barrier for kernels that several threads run together, without the GIL.

`sync` is an int64 array with one word per 64-byte line: arrivals, generation, abort (a thread
failed: nobody waits any more), then those of `team`. The last thread to arrive starts the next
generation; the others spin, then yield the CPU each turn.
With JIT switched off there is one thread and a barrier is nothing.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from kernels.jit import inner
from kernels.lowering import element_address, operation

__all__ = ["ABORT", "LINE", "atomic_add", "atomic_load", "atomic_store", "wait", "yield_cpu"]

I64Array = npt.NDArray[np.int64]

LINE = 8  # int64 words of a cache line
ARRIVED, GENERATION, ABORT = (i * LINE for i in range(3))
_SPINS = 2000


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


def yield_cpu() -> None:
    """Let another runnable thread have this CPU."""


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


@operation(yield_cpu, types.none)
def _yield_cpu(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    function_type = ir.FunctionType(ir.IntType(32), [])
    name = "sched_yield"  # libc
    function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
    builder.call(function, [])
    return context.get_dummy_value()


@inner
def wait(sync: I64Array, n_threads: int) -> None:
    """Return once all n_threads have called this; at once if the run was aborted."""
    if n_threads == 1:
        return
    generation = atomic_load(sync, GENERATION)
    if atomic_add(sync, ARRIVED, 1) == n_threads - 1:
        atomic_store(sync, ARRIVED, 0)
        atomic_store(sync, GENERATION, generation + 1)
        return
    spins = 0
    while atomic_load(sync, GENERATION) == generation and atomic_load(sync, ABORT) == 0:
        spins += 1
        if spins > _SPINS:
            yield_cpu()
