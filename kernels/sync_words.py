"""The words by which the threads of a pool find each other: one on each line of 64 bytes.

arrivals, generation, abort,      of `barrier`; abort: a thread failed, nobody waits any more
asleep                            how many threads sleep at some word. Behind generation and done:
                                  when they changed, by `clock`
done, job, seen                   of `team`: finished workers, the number of the job, what
workers have seen of it when they enter
what the job is, 8 words          `LEAVE`, or anything else, in the first of them
started, lateness                 when the job did, by `clock`; of `barrier`: above 0 for a while
after threads were woken late. Behind it: until when threads are taken to share a CPU
parked, rested; semaphore,        three lines for each thread; rested: nanoseconds between its last
passed; first, stop, waited,      two jobs; passed: of `relay`; the third line is of `balance`;
place                             place: the CPU that it was last seen on, + 1
"""

import numpy as np
import numpy.typing as npt

from kernels.aligned import aligned_zeros
from kernels.entries import init_semaphores

__all__ = [
    "ABORT",
    "ARRIVED",
    "ASLEEP",
    "CROWDED",
    "DONE",
    "FIRST",
    "GENERATION",
    "JOB",
    "JOB_WORDS",
    "LATENESS",
    "LEAVE",
    "LINE",
    "NEVER_PATIENT",
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
DONE, JOB, SEEN, JOB_WORDS, STARTED, LATENESS, THREADS = (i * LINE for i in range(4, 11))
LEAVE = -1
# The first word of thread t is THREADS + THREAD_WORDS * t; from there on:
PARKED, SEMAPHORE, FIRST = (i * LINE for i in range(3))
THREAD_WORDS = 3 * LINE
STOP, WAITED, PLACE = FIRST + 1, FIRST + 2, FIRST + 3
CROWDED = LATENESS + 1
# Of `relay`, behind the semaphore; the time is behind it.
PASSED = SEMAPHORE + LINE // 2
RESTED = PARKED + 1
NEVER_PATIENT = -(1 << 40)  # lateness that no late waking makes good
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
