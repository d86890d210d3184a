"""Shares of threads: whole, without gaps, and after a while as unequal as the cores are."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from kernels.balance import Team, meet, rebalance, share_of
from kernels.barrier import atomic_load
from kernels.clock import now_ns
from kernels.jit import JIT_DISABLED, kernel
from kernels.pool import Pool
from kernels.sync_words import (
    ARRIVED,
    FIRST,
    STARTED,
    STOP,
    THREAD_WORDS,
    THREADS,
    WAITED,
    WHOLE,
    new_sync,
)

I64Array = npt.NDArray[np.int64]

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="without JIT there is one thread")


@kernel
def shares(sync: I64Array, n: int, n_threads: int, out: I64Array) -> None:
    for tid in range(n_threads):
        out[tid, 0], out[tid, 1] = share_of(Team(tid, n_threads, sync), n)


@kernel
def end_of_job(sync: I64Array, n_threads: int, job_ns: int) -> None:
    rebalance(sync, n_threads, job_ns)


def parts(sync: I64Array, n: int, n_threads: int) -> list[tuple[int, int]]:
    out = np.zeros((n_threads, 2), np.int64)
    shares(sync, n, n_threads, out)
    return [(int(start), int(stop)) for start, stop in out]


def work(sync: I64Array, speeds: list[float], n: int = 6000) -> list[float]:
    """Let cores of some speeds do a job of n units; return what part of it each one did."""
    sizes = [stop - start for start, stop in parts(sync, n, len(speeds))]
    took = [1000.0 * size / speed for size, speed in zip(sizes, speeds, strict=True)]
    for tid, time_ns in enumerate(took):
        sync[THREADS + THREAD_WORDS * tid + WAITED] = int(max(took) - time_ns)
    end_of_job(sync, len(speeds), int(max(took)))
    return [size / n for size in sizes]


@pytest.mark.parametrize("n_threads", [1, 2, 3, 7])
def test_shares_are_equal_at_first_and_leave_no_unit_out(n_threads: int) -> None:
    sync = new_sync(n_threads)
    for n in (0, 1, n_threads, 50, 10_007, 2**31):
        found = parts(sync, n, n_threads)
        assert [found[0][0], *(stop for _, stop in found)] == [
            *(start for start, _ in found), n
        ]  # fmt: skip
        assert all(abs(stop - start - n / n_threads) <= 1 + n / WHOLE for start, stop in found)


@pytest.mark.parametrize(
    "speeds", [[1.0, 1.0, 1.0], [1.0, 3.0], [4.0, 4.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.7]]
)
def test_shares_become_as_unequal_as_the_cores(speeds: list[float]) -> None:
    sync = new_sync(len(speeds))
    for _ in range(100):
        done = work(sync, speeds)
    np.testing.assert_allclose(done, np.array(speeds) / sum(speeds), atol=0.01)
    words = [sync[THREADS + THREAD_WORDS * tid :] for tid in range(len(speeds))]
    assert words[0][FIRST] == 0
    assert words[-1][STOP] == WHOLE
    assert all(a[STOP] == b[FIRST] for a, b in itertools.pairwise(words))
    assert all(one[WAITED] == 0 for one in words)


def test_a_core_that_stood_still_gets_work_again_once_it_runs() -> None:
    sync = new_sync(3)
    for _ in range(300):
        done = work(sync, [1.0, 1.0, 0.001])
    assert 0.01 < done[2] < 0.03
    for _ in range(100):
        done = work(sync, [1.0, 1.0, 1.0])
    np.testing.assert_allclose(done, 1 / 3, atol=0.01)


def test_one_late_thread_moves_little() -> None:
    sync = new_sync(2)
    work(sync, [1.0, 0.01])
    np.testing.assert_allclose(work(sync, [1.0, 1.0]), 0.5, atol=0.03)


@kernel
def uneven(tid: int, n_threads: int, sync: I64Array) -> None:
    """Have thread 0 wait for at least half of the time that the job takes."""
    if tid == 0:
        sync[STARTED] = now_ns()
    else:
        while atomic_load(sync, ARRIVED) == 0:
            pass
        arrived_ns = now_ns()
        while now_ns() - arrived_ns < arrived_ns - sync[STARTED]:
            pass
    meet(Team(tid, n_threads, sync))
    if tid == 0:
        rebalance(sync, n_threads, now_ns() - sync[STARTED])


def test_who_is_waited_for_gets_less() -> None:
    pool = Pool(2)
    for _ in range(20):
        pool.run(uneven)
    first, second = parts(pool.sync, 1000, 2)
    assert first[1] > 600  # 20 times at least 2.5 % more and 2.5 % less
    assert second == (first[1], 1000)
    pool.close()
