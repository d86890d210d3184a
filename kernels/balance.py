"""Shares for unequal cores: whoever is waited for gets less of the next job.

    thread t works on units  n * first[t] / WHOLE .. n * stop[t] / WHOLE      stop[t] = first[t + 1]

Cores differ by design (big.LITTLE), or because another process, or another machine on the same
chip, has a part of them. Each thread counts how long it waits for the others at the barriers that
end shared work; after a job the shares change a little towards arriving together. A share is
contiguous, and which thread computes an output never changes the output.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.barrier import wait
from kernels.clock import now_ns
from kernels.jit import inner, merged
from kernels.places import look_around
from kernels.sync_words import FIRST, STOP, THREAD_WORDS, THREADS, WAITED, WHOLE

__all__ = ["Team", "meet", "rebalance", "share_of"]

I64Array = npt.NDArray[np.int64]

# How much of a difference one job makes good.
_GAIN = 0.1
# No thread gets less than this part of an equal share: how should it show that it has recovered?
_LEAST = 1.0 / 16.0


class Team(NamedTuple):
    """The threads that run one call together."""

    tid: int
    n_threads: int
    sync: I64Array


@merged
def _of_thread(tid: int) -> int:
    """Return the first word of a thread."""
    return THREADS + THREAD_WORDS * tid


@inner
def share_of(team: Team, n: int) -> tuple[int, int]:
    """Return the contiguous part [start, stop) of n units that this thread works on."""
    if team.n_threads == 1:
        return 0, n
    at, half = _of_thread(team.tid), WHOLE // 2
    first, stop = team.sync[at + FIRST], team.sync[at + STOP]
    return (n * first + half) // WHOLE, (n * stop + half) // WHOLE


@inner
def meet(team: Team) -> None:
    """Wait for all threads like `wait`, and count how long."""
    if team.n_threads == 1:
        return
    since_ns = now_ns()
    look_around(team.sync, team.tid, team.n_threads, since_ns)
    wait(team.sync, team.n_threads)
    team.sync[_of_thread(team.tid) + WAITED] += now_ns() - since_ns


@inner
def rebalance(sync: I64Array, n_threads: int, job_ns: int) -> None:
    """Change the shares after a job of job_ns, and forget who waited how long.

    Only for thread 0, when no other one is at work.
    """
    mean_ns, total = 0.0, 0.0
    for tid in range(n_threads):
        mean_ns += sync[_of_thread(tid) + WAITED] / n_threads
    for tid in range(n_threads):
        total += _width(sync, tid, n_threads, mean_ns, job_ns)
    end, before = 0.0, 0
    for tid in range(n_threads):
        at = _of_thread(tid)
        end += _width(sync, tid, n_threads, mean_ns, job_ns)
        sync[at + FIRST] = before
        before = WHOLE if tid == n_threads - 1 else int(end / total * WHOLE)
        sync[at + STOP] = before
        sync[at + WAITED] = 0


@inner
def _width(sync: I64Array, tid: int, n_threads: int, mean_ns: float, job_ns: int) -> float:
    """Return what a thread's share should be now, before all are made to sum up to WHOLE."""
    at = _of_thread(tid)
    excess = min(max((sync[at + WAITED] - mean_ns) / max(job_ns, 1), -1.0), 1.0)
    width = (sync[at + STOP] - sync[at + FIRST]) * (1.0 + _GAIN * excess)
    return float(max(width, _LEAST * WHOLE / n_threads))
