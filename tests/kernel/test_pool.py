import threading
from typing import Any

import numpy as np
import pytest

from kernels.barrier import wait
from kernels.errors import InputError
from kernels.jit import JIT_DISABLED, kernel
from kernels.pool import Pool
from tests.kernel_models import callable_from_python

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
def test_parked_threads_wake_up() -> None:
    pool = Pool(3)
    for _ in range(5):
        while not all(pool._parked[1:]):
            threading.Event().wait(0.001)
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


def test_bad_thread_counts() -> None:
    with pytest.raises(InputError, match="at least 1 thread, got 0"):
        Pool(0)
    if JIT_DISABLED:
        with pytest.raises(InputError, match="NUMBA_DISABLE_JIT"):
            Pool(2)
