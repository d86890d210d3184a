"""Threads of a job that wait for one another one by one, each for the thread before it.

A thread passes on once a phase; `stamp_of` tells phases apart. Cheaper than a barrier where whoever
is waited for has long been there.
"""

from kernels.balance import Team
from kernels.barrier import ABORT, atomic_load, change, wait_while
from kernels.jit import inner, merged
from kernels.sync_words import JOB, PASSED, THREAD_WORDS, THREADS

__all__ = ["await_thread", "pass_on", "stamp_of"]

# More layers than any model has.
_LAYERS = 1 << 20


@merged
def stamp_of(team: Team, layer: int) -> int:
    """Return a number that no other phase of any job has, for one kind of phase."""
    return int(team.sync[JOB] * _LAYERS + layer + 1)


@inner
def pass_on(team: Team, stamp: int) -> None:
    """Let the thread behind go on."""
    if team.n_threads > 1:
        word = THREADS + THREAD_WORDS * team.tid + PASSED
        change(team.sync, word, stamp - team.sync[word])


@inner
def await_thread(team: Team, tid: int, stamp: int) -> None:
    """Return once thread tid has passed on in this phase; at once if the run was aborted."""
    word = THREADS + THREAD_WORDS * tid + PASSED
    found = atomic_load(team.sync, word)
    while found != stamp and atomic_load(team.sync, ABORT) == 0:
        wait_while(team.sync, word, found, True)
        found = atomic_load(team.sync, word)
