"""The CPUs of a pool's caller, from Python: given back where compiled code could not.

See `places`, which may keep a thread on one CPU for the length of a job.
"""

import contextlib
import os
import sys

import numpy as np
import numpy.typing as npt

from kernels.sync_words import ALLOWED, ANYWHERE, MASK_WORDS, MOVED, THREADS

__all__ = ["give_back_cpus", "note_freedom"]

I64Array = npt.NDArray[np.int64]


def note_freedom(sync: I64Array) -> None:
    """Note whether this process may use all CPUs, so that threads are not kept from new ones."""
    with contextlib.suppress(OSError, AttributeError):
        sync[ANYWHERE] = len(os.sched_getaffinity(0)) >= (os.cpu_count() or 1)


def give_back_cpus(sync: I64Array) -> None:
    """Let the calling thread, thread 0 of a job that it did not end, use its CPUs again."""
    if sync[THREADS + MOVED] == 0:
        return
    sync[THREADS + MOVED] = 0
    words = sync[THREADS + ALLOWED : THREADS + ALLOWED + MASK_WORDS]
    if sync[ANYWHERE]:
        words[:] = -1
    mask = int.from_bytes(words.tobytes(), sys.byteorder)
    with contextlib.suppress(OSError):  # they may be others by now, or none
        os.sched_setaffinity(0, {cpu for cpu in range(64 * MASK_WORDS) if mask >> cpu & 1})
