"""Threads that run jobs together and stay in compiled code between them, without the GIL.

    thread 0      begin_job(sync, ...)    run its share    end_job(sync, ...)
    thread > 0    next_job(sync, tid)     run its share    finish_job(sync)     and over again

A function that follows this protocol is entered by every worker once (`Pool.attach`) and by the
caller for each job. Workers watch the job counter for a while after a job, longer if that one came
soon, longest if it took long too, then park on a semaphore. `sync` is laid out in `sync_words`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from kernels.balance import rebalance
from kernels.barrier import (
    BRIEFLY_NS,
    WATCH_NS,
    atomic_add,
    atomic_load,
    atomic_store,
    change,
    wait_while,
    watch,
)
from kernels.clock import now_ns
from kernels.jit import inner, kernel
from kernels.lowering import call_libc, element_address, operation
from kernels.places import may_go_anywhere
from kernels.sync_words import (
    CROWDED,
    DONE,
    JOB,
    JOB_WORDS,
    LEAVE,
    PARKED,
    RESTED,
    SEEN,
    SEMAPHORE,
    STARTED,
    THREAD_WORDS,
    THREADS,
    is_parked,
    new_sync,
)

__all__ = [
    "DONE",
    "JOB",
    "SEEN",
    "begin_job",
    "count_up",
    "dismiss",
    "end_job",
    "finish_job",
    "init_semaphores",
    "is_dismissed",
    "is_parked",
    "new_sync",
    "next_job",
    "read_job",
    "wait_count",
]

I64Array = npt.NDArray[np.int64]

# Workers watch for the next job for an eighth of the time that the last one took, if that is longer
# than WATCH_NS, but no longer than a token takes to a coordinator on this machine and back.
_WORK_PER_WATCH, _LONGEST_NS = 8, 1_500_000
_SEMAPHORE_BYTES = 32  # sem_t of glibc and musl on 64 bits


def _only_compiled() -> int:
    raise NotImplementedError("only compiled code has semaphores")


def semaphore_init(words: I64Array, i: int) -> int:
    """Make a semaphore of count 0 at words[i]."""
    return _only_compiled()


def semaphore_post(words: I64Array, i: int) -> int:
    """Add 1 to the semaphore's count."""
    return _only_compiled()


def semaphore_wait(words: I64Array, i: int) -> int:
    """Wait until the count is above 0 and take 1, or until a signal comes."""
    return _only_compiled()


def _of_semaphore(name: str, *extra: int) -> Any:
    """Return the lowering of int name(sem_t *, unsigned ...) with constants after the address."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = element_address(context, builder, sig.args[0], args[0], args[1], _SEMAPHORE_BYTES)
        constants = [ir.Constant(ir.IntType(32), value) for value in extra]
        return call_libc(builder, name, at, *constants)

    return lower


operation(semaphore_init, types.int64, types.Array, types.Integer)(_of_semaphore("sem_init", 0, 0))
operation(semaphore_post, types.int64, types.Array, types.Integer)(_of_semaphore("sem_post"))
operation(semaphore_wait, types.int64, types.Array, types.Integer)(_of_semaphore("sem_wait"))


@kernel
def init_semaphores(sync: I64Array, n_threads: int) -> None:
    """Make the semaphores of new words."""
    for tid in range(n_threads):
        semaphore_init(sync, THREADS + THREAD_WORDS * tid + SEMAPHORE)


@inner
def begin_job(
    sync: I64Array, n_threads: int, what: int, a: int, b: int, c: int, d: int, e: int, f: int
) -> None:
    """Publish a job, seven numbers, and wake the workers that sleep."""
    for i, word in enumerate((what, a, b, c, d, e, f)):
        sync[JOB_WORDS + i] = word
    sync[STARTED] = now_ns()
    atomic_add(sync, JOB, 1)
    for tid in range(1, n_threads):
        at = THREADS + THREAD_WORDS * tid
        # A worker that is just about to sleep may get one post too many; see next_job.
        if atomic_load(sync, at + PARKED) != 0:
            semaphore_post(sync, at + SEMAPHORE)


@inner
def next_job(sync: I64Array, tid: int, seen: int) -> None:
    """Return once the number of the job differs from `seen`."""
    at = THREADS + THREAD_WORDS * tid
    since_ns = now_ns()
    # Jobs that followed each other soon will do so again; a thread that sleeps comes back late.
    soon_ns = max(WATCH_NS, min((since_ns - sync[STARTED]) // _WORK_PER_WATCH, _LONGEST_NS))
    is_soon = sync[at + RESTED] < soon_ns and since_ns >= sync[CROWDED]
    came = watch(sync, JOB, seen, soon_ns if is_soon else BRIEFLY_NS)
    if not came or atomic_load(sync, JOB) == seen:  # an abort is no job
        may_go_anywhere(sync, tid)
        _park(sync, at, seen)
    if is_dismissed(sync):
        may_go_anywhere(sync, tid)
    sync[at + RESTED] = now_ns() - since_ns


@inner
def _park(sync: I64Array, at: int, seen: int) -> None:
    """Sleep until the number of the job differs from `seen`; at: the thread's first word."""
    atomic_store(sync, at + PARKED, 1)
    # Either we see the new job here, or its publisher saw the flag and posts.
    while atomic_load(sync, JOB) == seen:
        semaphore_wait(sync, at + SEMAPHORE)
    atomic_store(sync, at + PARKED, 0)


@inner
def read_job(sync: I64Array) -> tuple[int, int, int, int, int, int, int]:
    """Return the numbers of the job."""
    i = JOB_WORDS
    return (
        sync[i], sync[i + 1], sync[i + 2], sync[i + 3], sync[i + 4], sync[i + 5], sync[i + 6],
    )  # fmt: skip


@inner
def is_dismissed(sync: I64Array) -> bool:
    """Tell whether the job is to leave."""
    return bool(sync[JOB_WORDS] == LEAVE)


@inner
def finish_job(sync: I64Array) -> None:
    """Say that this worker has done its share."""
    change(sync, DONE, 1)


@inner
def end_job(sync: I64Array, n_threads: int) -> None:
    """Wait until all workers have done theirs, and make ready for the next job."""
    wait_count(sync, DONE, n_threads - 1)
    atomic_store(sync, DONE, 0)
    if n_threads > 1:
        may_go_anywhere(sync, 0)  # the caller's thread has other things to do
        rebalance(sync, n_threads, now_ns() - sync[STARTED])


@kernel
def dismiss(sync: I64Array, n_threads: int) -> None:
    """Have attached workers return to Python."""
    begin_job(sync, n_threads, LEAVE, 0, 0, 0, 0, 0, 0)


@kernel
def count_up(sync: I64Array, i: int) -> None:
    """Add 1 to a word as one step seen by all threads."""
    change(sync, i, 1)


@kernel
def wait_count(sync: I64Array, i: int, n: int) -> None:
    """Return once a word has reached n, after an abort too: those who count still have to."""
    found = atomic_load(sync, i)
    while found < n:
        wait_while(sync, i, found, False)
        found = atomic_load(sync, i)
