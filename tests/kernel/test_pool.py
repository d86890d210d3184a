import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.barrier import wait
from kernels.errors import InputError
from kernels.jit import JIT_DISABLED, kernel
from kernels.pool import Pool
from kernels.team import (
    DONE,
    SEEN,
    begin_job,
    end_job,
    finish_job,
    is_dismissed,
    is_parked,
    next_job,
    read_job,
    wait_count,
)
from tests.kernel_models import callable_from_python

ROOT = Path(__file__).resolve().parents[2]

needs_threads = pytest.mark.skipif(JIT_DISABLED, reason="without JIT there is one thread")


@kernel
def add_in_turns(tid: int, n_threads: int, sync: Any, values: Any, n_turns: int) -> None:
    """Every turn each thread sums all values of the turn before: wrong without a barrier."""
    for turn in range(n_turns):
        total = 0
        for i in range(n_threads):
            total += values[turn, i]
        values[turn + 1, tid] = total % 1000 + tid
        wait(sync, n_threads)


def expected_turns(n_threads: int, n_turns: int) -> np.ndarray:
    values = np.ones((n_turns + 1, n_threads), np.int64)
    for turn in range(n_turns):
        values[turn + 1] = values[turn].sum() % 1000 + np.arange(n_threads)
    return values


def test_one_thread_is_a_plain_call() -> None:
    pool = Pool(1)
    values = np.ones((11, 1), np.int64)
    pool.run(add_in_turns, values, 10)
    np.testing.assert_array_equal(values, expected_turns(1, 10))
    pool.close()


@needs_threads
@pytest.mark.parametrize("n_threads", [2, 3, 8])
def test_threads_meet_at_every_barrier(n_threads: int) -> None:
    pool = Pool(n_threads)
    for _ in range(20):
        values = np.ones((31, n_threads), np.int64)
        pool.run(add_in_turns, values, 30)
        np.testing.assert_array_equal(values, expected_turns(n_threads, 30))
    pool.close()


@needs_threads
def test_threads_run_one_function_after_another() -> None:
    pool = Pool(3)
    for _ in range(5):
        values = np.ones((3, 3), np.int64)
        pool.run(add_in_turns, values, 2)
        np.testing.assert_array_equal(values, expected_turns(3, 2))
    pool.close()


@needs_threads
def test_close_ends_the_threads() -> None:
    before = threading.active_count()
    pool = Pool(4)
    assert threading.active_count() == before + 3
    pool.close()
    pool.close()
    assert threading.active_count() == before


@needs_threads
def test_an_error_on_any_thread_reaches_the_caller_and_the_pool_lives_on() -> None:
    pool = Pool(3)
    meet = callable_from_python(wait)

    def fail(tid: int, n_threads: int, sync: Any, who: int) -> None:
        if tid == who:
            raise RuntimeError(f"thread {tid}")
        meet(sync, n_threads)

    for who in range(3):
        with pytest.raises(RuntimeError, match=f"thread {who}"):
            pool.run(fail, who)
        values = np.ones((3, 3), np.int64)
        pool.run(add_in_turns, values, 2)
        np.testing.assert_array_equal(values, expected_turns(3, 2))
    pool.close()


@kernel
def count_jobs(
    tid: int,
    n_threads: int,
    sync: Any,
    what: int,
    a: int,
    b: int,
    c: int,
    d: int,
    e: int,
    f: int,
    counts: Any,
) -> None:
    """Add `what` to this thread's count in every job."""  # fmt: skip
    seen = sync[SEEN]
    while True:
        if tid == 0:
            begin_job(sync, n_threads, what, a, b, c, d, e, f)
        else:
            next_job(sync, tid, seen)
            seen += 1
            if is_dismissed(sync):
                return
        counts[tid] += read_job(sync)[0]
        if tid == 0:
            end_job(sync, n_threads)
            return
        finish_job(sync)


IDLE = (0,) * 7


def run_jobs(pool: Pool, counts: Any, jobs: list[int]) -> None:
    pool.attach(count_jobs, (*IDLE, counts))
    for what in jobs:
        count_jobs(0, pool.n_threads, pool.sync, what, 0, 0, 0, 0, 0, 0, counts)
        pool.check()


def wait_parked(pool: Pool) -> None:
    deadline_s = time.monotonic() + 20
    while not all(is_parked(pool.sync, tid) for tid in range(1, pool.n_threads)):
        assert time.monotonic() < deadline_s, "a worker does not park"
        os.sched_yield()


@needs_threads
@pytest.mark.parametrize("n_threads", [2, 5])
def test_attached_threads_do_every_job_also_after_they_have_slept(n_threads: int) -> None:
    pool = Pool(n_threads)
    counts = np.zeros(n_threads, np.int64)
    run_jobs(pool, counts, list(range(1, 2001)))
    for _ in range(20):
        wait_parked(pool)
        run_jobs(pool, counts, [1])
    np.testing.assert_array_equal(counts, np.full(n_threads, 2001 * 1000 + 20))
    pool.close()


@needs_threads
def test_attached_threads_change_to_other_arrays_and_functions() -> None:
    pool = Pool(3)
    first, second = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for _ in range(10):
        run_jobs(pool, first, [1, 2])
        run_jobs(pool, second, [10])
        values = np.ones((3, 3), np.int64)
        pool.run(add_in_turns, values, 2)
        np.testing.assert_array_equal(values, expected_turns(3, 2))
    np.testing.assert_array_equal(first, [30, 30, 30])
    np.testing.assert_array_equal(second, [100, 100, 100])
    pool.close()


@needs_threads
def test_attaching_the_same_again_leaves_the_threads_where_they_are() -> None:
    pool = Pool(2)
    counts = np.zeros(2, np.int64)
    run_jobs(pool, counts, [1])
    n_entries = pool.sync[SEEN]
    for _ in range(5):
        run_jobs(pool, counts, [1])
    assert pool.sync[SEEN] == n_entries
    pool.close()


@needs_threads
@pytest.mark.parametrize("asked", ["check", "attach"])
def test_an_attached_worker_that_fails_is_told_and_the_pool_lives_on(asked: str) -> None:
    """When somebody asks, or at the latest when the next job is to begin."""
    pool = Pool(3)

    def fail(tid: int, n_threads: int, sync: Any, counts: Any) -> None:
        if tid == 1:
            raise RuntimeError("worker 1")
        if tid == 0:
            wait_count(sync, DONE, 1)  # of the one that failed
        else:
            callable_from_python(next_job)(sync, tid, int(sync[SEEN]))

    counts = np.zeros(3, np.int64)
    pool.attach(fail, (counts,))
    fail(0, 3, pool.sync, counts)
    with pytest.raises(RuntimeError, match="worker 1"):
        pool.check() if asked == "check" else pool.attach(fail, (counts,))
    run_jobs(pool, counts, [1])
    np.testing.assert_array_equal(counts, [1, 1, 1])
    pool.close()


@needs_threads
def test_a_worker_that_fails_before_any_job_leaves_no_trace() -> None:
    pool = Pool(3)
    for _ in range(20):
        pool.attach(fail_at_once, (0,))
        with pytest.raises(RuntimeError, match="never in"):
            pool.run(lambda *_: None)
        assert pool.sync[DONE] == 0
    counts = np.zeros(3, np.int64)
    run_jobs(pool, counts, [1] * 50)
    np.testing.assert_array_equal(counts, [50, 50, 50])
    pool.close()


@needs_threads
def test_what_was_attached_can_be_freed_after_detach() -> None:
    pool = Pool(3)
    counts = np.zeros(3, np.int64)
    run_jobs(pool, counts, [1])
    remains = weakref.ref(counts)
    del counts
    assert remains() is not None
    pool.detach()
    gc.collect()
    assert remains() is None
    pool.close()


def fail_at_once(tid: int, n_threads: int, sync: Any, nothing: int) -> None:
    raise RuntimeError("never in")


@needs_threads
@pytest.mark.parametrize("interrupt", [False, True])
def test_a_process_ends_though_nobody_closes_its_sleeping_threads(interrupt: bool) -> None:
    program = """
import os, signal, sys
import tests.kernel.test_pool as t
import numpy as np
pool = t.Pool(3)
t.run_jobs(pool, np.zeros(3, np.int64), [1])
t.wait_parked(pool)
if sys.argv[1] == "True":
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(interrupt)], cwd=ROOT, timeout=60, capture_output=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr.decode()) == (0, "")


def test_bad_thread_counts() -> None:
    with pytest.raises(InputError, match="at least 1 thread, got 0"):
        Pool(0)
    if JIT_DISABLED:
        with pytest.raises(InputError, match="NUMBA_DISABLE_JIT"):
            Pool(2)
