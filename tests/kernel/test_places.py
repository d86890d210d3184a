"""Threads that meet on one CPU: one of them moves, stays a while, and may then go anywhere."""

import ctypes
import os
import platform
import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from kernels import slices
from kernels.barrier import wait
from kernels.jit import JIT_DISABLED, kernel
from kernels.places import look_around, may_go_anywhere
from kernels.pool import Pool
from kernels.slices import ask_for_short_slices
from kernels.sync_words import (
    ALLOWED,
    ALWAYS,
    ANYWHERE,
    CROWDED,
    MASK_WORDS,
    MOVED,
    PLACE,
    SEEN,
    THREAD_WORDS,
    THREADS,
    new_sync,
)
from kernels.team import begin_job, end_job, finish_job, is_dismissed, next_job

I64Array = npt.NDArray[np.int64]

CORES = os.sched_getaffinity(0)
needs_jit = pytest.mark.skipif(JIT_DISABLED, reason="without JIT there is one thread")
needs_cores = pytest.mark.skipif(len(CORES) < 2, reason="this process may use one core only")
needs_slices = pytest.mark.skipif(
    tuple(int(n) for n in platform.release().split(".")[:2]) < (6, 12),
    reason=f"Linux {platform.release()} has one time slice for all; 6.12 let threads ask",
)


@pytest.fixture
def cores() -> Iterator[list[int]]:
    yield sorted(CORES)
    os.sched_setaffinity(0, CORES)


@kernel
def look(sync: I64Array, tid: int, n_threads: int, time_ns: int) -> None:
    look_around(sync, tid, n_threads, time_ns)


@kernel
def go(sync: I64Array, tid: int) -> None:
    may_go_anywhere(sync, tid)


def word(sync: I64Array, tid: int, i: int) -> int:
    return int(sync[THREADS + THREAD_WORDS * tid + i])


def place(sync: I64Array, tid: int, core: int) -> None:
    sync[THREADS + THREAD_WORDS * tid + PLACE] = core + 1


@needs_jit
def test_a_thread_alone_on_its_cpu_stays_there(cores: list[int]) -> None:
    os.sched_setaffinity(0, {cores[0]})
    sync = new_sync(2)
    place(sync, 1, cores[-1] + 1)
    look(sync, 0, 2, 1_000)
    assert word(sync, 0, PLACE) == cores[0] + 1
    assert word(sync, 0, MOVED) == 0
    assert sync[CROWDED] == 0


def move(sync: I64Array, time_ns: int) -> int:
    """Have thread 0 meet others on all cores but one, and move; return that one."""
    for _ in range(1000):  # the system may move it in between
        for tid in range(1, len(CORES)):
            place(sync, tid, -1)
        place(sync, 0, -1)
        look(sync, 0, len(CORES), time_ns)
        here = word(sync, 0, PLACE) - 1
        free = next(core for core in sorted(CORES, reverse=True) if core != here)
        for tid, core in enumerate(CORES - {free}, start=1):
            place(sync, tid, core)
        look(sync, 0, len(CORES), time_ns)
        if word(sync, 0, MOVED) != 0:
            return free
    raise AssertionError("it never moved")


@needs_jit
@needs_cores
def test_who_meets_another_thread_moves_to_a_cpu_where_nobody_was_seen(cores: list[int]) -> None:
    sync = new_sync(len(cores))
    free = move(sync, 5_000)
    assert os.sched_getaffinity(0) == {free}
    assert word(sync, 0, PLACE) == free + 1
    assert sync[CROWDED] == 0


@needs_jit
@needs_cores
def test_it_stays_for_a_second_and_may_then_use_the_cpus_it_had(cores: list[int]) -> None:
    sync = new_sync(len(cores))
    free = move(sync, 7_000)
    look(sync, 0, len(cores), 900_000_000)
    assert os.sched_getaffinity(0) == {free}
    look(sync, 0, len(cores), 1_100_000_000)
    assert os.sched_getaffinity(0) == CORES
    assert word(sync, 0, MOVED) == 0


@needs_jit
@needs_cores
def test_it_goes_back_to_where_it_was_if_nobody_is_there_by_now(cores: list[int]) -> None:
    for home in cores:
        sync = new_sync(2)
        for _ in range(1000):  # the system may move it in between
            place(sync, 0, -1)
            place(sync, 1, -1)
            look(sync, 0, 2, 1_000)
            place(sync, 1, word(sync, 0, PLACE) - 1)
            place(sync, 0, home)
            look(sync, 0, 2, 1_000)
            if word(sync, 0, MOVED) != 0 and word(sync, 1, PLACE) != home + 1:
                break
            go(sync, 0)
        assert os.sched_getaffinity(0) == {home}
        go(sync, 0)


@needs_jit
@needs_cores
def test_a_process_that_may_use_all_cpus_may_also_use_new_ones(cores: list[int]) -> None:
    sync = new_sync(len(cores))
    sync[ANYWHERE] = 1
    move(sync, 5_000)
    words = sync[THREADS + ALLOWED : THREADS + ALLOWED + MASK_WORDS]
    words[:] = 1 << min(cores)  # as if the others had been away when it moved
    words[1:] = 0
    go(sync, 0)
    assert os.sched_getaffinity(0) == CORES


@needs_jit
@needs_cores
def test_where_the_system_lets_no_thread_move_they_are_crowded(cores: list[int]) -> None:
    sync = new_sync(len(cores))
    move(sync, 5_000)
    sync[THREADS + ALLOWED : THREADS + ALLOWED + MASK_WORDS] = 0
    sync[THREADS + ALLOWED + 15] = 1 << 62  # CPU 1022: set_cpus fails
    here = word(sync, 0, PLACE) - 1
    place(sync, 1, here)
    look(sync, 0, len(cores), 6_000)
    assert sync[CROWDED] > 6_000


@needs_jit
def test_where_every_cpu_is_taken_threads_are_crowded_for_a_while(cores: list[int]) -> None:
    os.sched_setaffinity(0, {cores[0]})
    sync = new_sync(3)
    place(sync, 1, cores[0])
    look(sync, 2, 3, 2_000)
    assert 2_000 < sync[CROWDED] < 100_000_000
    assert word(sync, 2, MOVED) == 0
    assert os.sched_getaffinity(0) == {cores[0]}
    until = int(sync[CROWDED])
    look(sync, 2, 3, 1_000)
    assert sync[CROWDED] == until  # never less


@kernel
def meet_another(tid: int, n_threads: int, sync: I64Array, core: int, n_moves: I64Array) -> None:
    """Have thread 0 think that thread 1 is where it runs itself, if that is this core."""
    if tid == 0:
        sync[THREADS + THREAD_WORDS + PLACE] = core + 1
        look_around(sync, 0, n_threads, 1_000)
        n_moves[0] += sync[THREADS + MOVED] != 0
    wait(sync, n_threads)


@needs_jit
@needs_cores
def test_the_caller_gets_its_cpus_back_after_a_job(cores: list[int]) -> None:
    pool = Pool(2)
    n_moves = np.zeros(1, np.int64)
    for core in cores * 100:
        pool.run(meet_another, core, n_moves)
        assert os.sched_getaffinity(0) == CORES
    pool.close()
    assert n_moves[0] > 0


@kernel
def jobs_that_meet(tid: int, n_threads: int, sync: I64Array, core_and_moves: I64Array) -> None:
    """Do one job as thread 0, who meets thread 1; every one as another thread."""
    seen = sync[SEEN]
    while True:
        if tid == 0:
            begin_job(sync, n_threads, 1, 0, 0, 0, 0, 0, 0)
            sync[THREADS + THREAD_WORDS + PLACE] = core_and_moves[0] + 1
            look_around(sync, 0, n_threads, 1_000)
            core_and_moves[1] += sync[THREADS + MOVED] != 0
            end_job(sync, n_threads)
            return
        next_job(sync, tid, seen)
        seen += 1
        if is_dismissed(sync):
            return
        finish_job(sync)


@needs_jit
@needs_cores
def test_the_caller_gets_its_cpus_back_after_each_job_of_attached_workers(
    cores: list[int],
) -> None:
    pool = Pool(2)
    core_and_moves = np.zeros(2, np.int64)
    for core in cores * 100:
        core_and_moves[0] = core
        pool.attach(jobs_that_meet, (core_and_moves,))
        jobs_that_meet(0, 2, pool.sync, core_and_moves)
        assert os.sched_getaffinity(0) == CORES
    pool.close()
    assert core_and_moves[1] > 0


@kernel
def barriers(tid: int, n_threads: int, sync: I64Array, n: int) -> None:
    for _ in range(n):
        wait(sync, n_threads)


@needs_jit
def test_threads_that_outnumber_the_cores_are_always_crowded(cores: list[int]) -> None:
    pool = Pool(3, n_cores=2)
    pool.run(barriers, 300)
    assert pool.sync[CROWDED] == ALWAYS
    core = min(CORES)
    os.sched_setaffinity(0, {core})
    for tid in (1, 2):
        place(pool.sync, tid, core)
    look(pool.sync, 0, 3, 1_000)
    assert pool.sync[CROWDED] == ALWAYS
    pool.close()


@needs_jit
def test_without_having_moved_nothing_is_changed(cores: list[int]) -> None:
    os.sched_setaffinity(0, {cores[-1]})
    go(new_sync(2), 0)
    assert os.sched_getaffinity(0) == {cores[-1]}


class Attributes(ctypes.Structure):
    """Of sched_getattr, as the manual has it."""

    _fields_ = (
        ("size_and_policy", ctypes.c_uint32 * 2),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_and_period_ns", ctypes.c_uint64 * 2),
    )


def attributes() -> Attributes:
    found = Attributes()
    number = {"x86_64": 315, "aarch64": 275}[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, 0, ctypes.byref(found), ctypes.sizeof(found), 0) == 0
    return found


def asked(nice: int) -> tuple[Attributes, Attributes, Attributes]:
    """Return those of a thread before and after it asks, and of its child."""
    found: list[Attributes] = []

    def ask() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        found.append(attributes())
        ask_for_short_slices()
        found.append(attributes())
        child = threading.Thread(target=lambda: found.append(attributes()))
        child.start()
        child.join()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    before, after, child = found
    return before, after, child


@needs_slices
def test_slices_are_short_and_not_for_children() -> None:
    before, after, child = asked(3)
    assert after.runtime_ns == 700_000 <= before.runtime_ns
    assert (after.nice, after.priority, list(after.size_and_policy)) == (3, 0, [48, 0])
    assert child.runtime_ns == before.runtime_ns


@pytest.mark.parametrize("machine", ["riscv64", "aarch64", "x86_64"])
def test_where_there_is_no_such_call_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(slices, "_CALLS", {"x86_64": (-1, -1), "aarch64": (-1, -1)})
    ask_for_short_slices()


@needs_slices
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may favour a thread")
def test_a_favoured_thread_keeps_its_slices_and_its_children_their_favour() -> None:
    before, after, child = asked(-5)
    assert after.runtime_ns == child.runtime_ns == before.runtime_ns
    assert child.nice == -5
