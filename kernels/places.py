"""Threads of a job on CPUs of their own.

Where other processes take CPUs too, the system may have two of our threads take turns on one, for
it wakes a thread near whoever woke it. One of them then watches at a barrier, and so keeps away the
very thread that it waits for. So each thread notes where it runs; who meets another one there moves
to a CPU where none was seen, and stays for a while: a worker for a second, while there are jobs,
the caller until the end of the job. Where there is no such CPU everybody watches only briefly. With
JIT off there is one thread, and nothing to do.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from kernels.jit import inner
from kernels.lowering import call_libc, element_address, operation
from kernels.sync_words import (
    ALLOWED,
    ALONE,
    ANYWHERE,
    CROWDED,
    MASK_WORDS,
    MOVED,
    PLACE,
    THREAD_WORDS,
    THREADS,
)

__all__ = ["look_around", "may_go_anywhere"]

I64Array = npt.NDArray[np.int64]

# So long after two threads were seen on one CPU they may still be there.
_CROWDED_NS = 10_000_000
# So long a thread stays where it has moved to: some hundred tokens' worth of waking up.
_STAY_NS = 1_000_000_000


def this_cpu() -> int:
    """Return the number of the CPU that this thread runs on, or -1."""
    return -1


def get_cpus(words: I64Array, i: int) -> int:
    """Write which CPUs this thread may use to MASK_WORDS words from words[i] on, a bit for each.

    Returns 0, or -1 if the system does not tell.
    """
    return -1


def set_cpus(words: I64Array, i: int) -> int:
    """Have this thread use the CPUs that words[i] .. name; 0, or -1 if the system does not."""
    return -1


@operation(this_cpu, types.int64)
def _this_cpu(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return call_libc(builder, "sched_getcpu")


def _with_mask(name: str) -> Any:
    """Return the lowering of int name(calling thread, size, mask)."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        n_bytes = 8 * MASK_WORDS
        mask = element_address(context, builder, sig.args[0], args[0], args[1], n_bytes)
        return call_libc(builder, name, ir.IntType(32)(0), ir.IntType(64)(n_bytes), mask)

    return lower


operation(get_cpus, types.int64, types.Array, types.Integer)(_with_mask("sched_getaffinity"))
operation(set_cpus, types.int64, types.Array, types.Integer)(_with_mask("sched_setaffinity"))


@inner
def look_around(sync: I64Array, tid: int, n_threads: int, time_ns: int) -> None:
    """Note where this thread runs, and get away from there if another one was last seen there."""
    place = this_cpu() + 1
    if place <= 0:  # the system does not tell
        return
    at = THREADS + THREAD_WORDS * tid
    before = sync[at + PLACE]
    sync[at + PLACE] = place
    if sync[at + MOVED] != 0 and time_ns - sync[at + MOVED] > _STAY_NS:
        may_go_anywhere(sync, tid)
    if _is_taken(sync, tid, n_threads, place) and not _move(sync, tid, n_threads, before, time_ns):
        sync[CROWDED] = max(sync[CROWDED], time_ns + _CROWDED_NS)


@inner
def may_go_anywhere(sync: I64Array, tid: int) -> None:
    """Give this thread back the CPUs that it was allowed before it moved, if it did."""
    at = THREADS + THREAD_WORDS * tid
    if sync[at + MOVED] != 0:
        sync[at + MOVED] = 0
        if sync[ANYWHERE] != 0:  # also CPUs that were not there when it moved
            for i in range(MASK_WORDS):
                sync[at + ALLOWED + i] = -1
        set_cpus(sync, at + ALLOWED)


@inner
def _is_taken(sync: I64Array, tid: int, n_threads: int, place: int) -> bool:
    """Tell whether another thread was last seen at a place, a CPU's number + 1."""
    for other in range(n_threads):
        if other != tid and sync[THREADS + THREAD_WORDS * other + PLACE] == place:
            return True
    return False


@inner
def _move(sync: I64Array, tid: int, n_threads: int, before: int, time_ns: int) -> bool:
    """Move this thread to a CPU where no other one was seen, and tell whether there was one.

    Back to its place before, a CPU's number + 1, if nobody is there by now: other processes have
    made way for it there. Else to the next one upwards.
    """
    at = THREADS + THREAD_WORDS * tid
    if sync[at + MOVED] == 0 and get_cpus(sync, at + ALLOWED) != 0:
        return False
    n = 64 * MASK_WORDS
    for step in range(n):
        cpu = (sync[at + PLACE] - 1 + step) % n
        if step == 0 and before > 0:
            cpu = before - 1
        is_allowed = (sync[at + ALLOWED + cpu // 64] >> (cpu % 64)) & 1 != 0
        if is_allowed and not _is_taken(sync, tid, n_threads, cpu + 1):
            for i in range(MASK_WORDS):
                sync[at + ALONE + i] = 0
            sync[at + ALONE + cpu // 64] = 1 << (cpu % 64)
            if set_cpus(sync, at + ALONE) != 0:
                return False
            sync[at + MOVED] = time_ns
            sync[at + PLACE] = cpu + 1
            return True
    return False
