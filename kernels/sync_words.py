"""The words by which the threads of a pool find each other: one on each line of 64 bytes.

arrivals, generation, abort,      of `barrier`; abort: a thread failed, nobody waits any more
asleep                            how many threads sleep at some word
done, job, seen                   of `team`: finished workers, the number of the job, what
workers have seen of it when they enter
what the job is, 8 words          `LEAVE`, or anything else, in the first of them
started, crowded, anywhere        when the job did, and until when threads are taken to share a
                                  CPU, by `clock`; whether the process may use all CPUs
parked, rested; semaphore,        three lines for each thread; rested: nanoseconds between its last
passed; first, stop, waited,      two jobs; passed: of `relay`; the third line is of `balance`.
place, moved; allowed, alone      place: the CPU that it was last seen on, + 1; moved: when it got
                                  away from another one, by `clock`, or 0; then sets of CPUs, two
                                  lines each: those it may use, and the one that it moved to
"""

import numpy as np
import numpy.typing as npt

from kernels.aligned import aligned_zeros
from kernels.entries import init_semaphores

__all__ = [
    "ABORT",
    "ALLOWED",
    "ALONE",
    "ALWAYS",
    "ANYWHERE",
    "ARRIVED",
    "ASLEEP",
    "CROWDED",
    "DONE",
    "FIRST",
    "GENERATION",
    "JOB",
    "JOB_WORDS",
    "LEAVE",
    "LINE",
    "MASK_WORDS",
    "MOVED",
    "PARKED",
    "PASSED",
    "PLACE",
    "RESTED",
    "SEEN",
    "SEMAPHORE",
    "STARTED",
    "STOP",
    "THREADS",
    "THREAD_WORDS",
    "WAITED",
    "WHOLE",
    "is_parked",
    "new_sync",
]

I64Array = npt.NDArray[np.int64]

LINE = 8  # int64 words of a cache line
ARRIVED, GENERATION, ABORT, ASLEEP = (i * LINE for i in range(4))
DONE, JOB, SEEN, JOB_WORDS, STARTED, CROWDED, THREADS = (i * LINE for i in range(4, 11))
LEAVE = -1
# The first word of thread t is THREADS + THREAD_WORDS * t; from there on:
PARKED, SEMAPHORE, FIRST = (i * LINE for i in range(3))
ANYWHERE = CROWDED + 1
MASK_WORDS = 2 * LINE  # 1024 CPUs
ALLOWED, ALONE = 3 * LINE, 3 * LINE + MASK_WORDS
THREAD_WORDS = ALONE + MASK_WORDS
STOP, WAITED, PLACE, MOVED = (FIRST + i for i in range(1, 5))
# Of `relay`, behind the semaphore.
PASSED = SEMAPHORE + LINE // 2
RESTED = PARKED + 1
ALWAYS = 1 << 62  # for crowded: threads outnumber the cores
WHOLE = 1 << 20  # what first and stop are parts of


def new_sync(n_threads: int) -> I64Array:
    """Return zeroed words whose lines start at multiples of 64 bytes."""
    n_words = THREADS + THREAD_WORDS * n_threads
    sync: I64Array = aligned_zeros(n_words, np.int64)
    for tid in range(n_threads):
        at = THREADS + THREAD_WORDS * tid
        sync[at + FIRST], sync[at + STOP] = (i * WHOLE // n_threads for i in (tid, tid + 1))
    if n_threads > 1:
        init_semaphores(sync, n_threads)
    return sync


def is_parked(sync: I64Array, tid: int) -> bool:
    """Tell whether a worker sleeps."""
    return bool(sync[THREADS + THREAD_WORDS * tid + PARKED])
