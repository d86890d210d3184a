"""Worker threads that run one kernel together, the GIL released.

The caller is thread 0. The others are persistent Python threads: between calls they watch the
job counter in compiled code for a moment, then sleep. The only part of `kernels` that may use
threads.
"""

import threading
from collections.abc import Callable
from typing import Any

from kernels.barrier import ABORT, DONE, JOB, count_up, new_sync, wait_change, wait_count
from kernels.errors import InputError
from kernels.jit import JIT_DISABLED

__all__ = ["Pool"]

_WATCH_SPINS = 20_000  # some tens of microseconds; then park


class Pool:
    """n_threads threads that enter the same function together.

    Args:
        n_threads: threads, the caller included.

    Raises:
        InputError: n_threads below 1, or above 1 with JIT switched off.
    """

    def __init__(self, n_threads: int) -> None:
        if n_threads < 1:
            raise InputError(f"a pool needs at least 1 thread, got {n_threads}; raise --threads")
        if n_threads > 1 and JIT_DISABLED:
            raise InputError("NUMBA_DISABLE_JIT allows only one thread; use --threads 1")
        self.n_threads = n_threads
        self.sync = new_sync()
        self._job: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
        self._failure: BaseException | None = None
        self._parked = [False] * n_threads
        self._wake = [threading.Semaphore(0) for _ in range(n_threads)]
        self._workers = [
            threading.Thread(target=self._work, args=(tid,), name=f"kernel-{tid}", daemon=True)
            for tid in range(1, n_threads)
        ]
        for worker in self._workers:
            worker.start()

    def run(self, function: Callable[..., Any], *args: Any) -> None:
        """Call function(tid, n_threads, sync, *args) on every thread and wait for all of them.

        Must not be called from two threads at once. With one thread it is a plain call.

        Raises:
            Exception: what the function raised on any thread, the caller's own first.
        """
        if self.n_threads == 1:
            function(0, 1, self.sync, *args)
            return
        self._failure = None
        self._start((function, args))
        try:
            function(0, self.n_threads, self.sync, *args)
        except BaseException:
            self.sync[ABORT] = 1
            raise
        finally:
            wait_count(self.sync, DONE, self.n_threads - 1)
            self._reset()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the workers; the pool must not be used again."""
        if self._workers:
            self._start(None)
            for worker in self._workers:
                worker.join()
            self._workers = []

    def _start(self, job: tuple[Callable[..., Any], tuple[Any, ...]] | None) -> None:
        """Publish a job and wake the workers that sleep."""
        self._job = job
        self.sync[JOB] += 1
        for tid in range(1, self.n_threads):
            if self._parked[tid]:
                self._parked[tid] = False
                self._wake[tid].release()

    def _reset(self) -> None:
        """Make the words ready for the next job; no worker is inside one."""
        self.sync[:JOB] = 0

    def _work(self, tid: int) -> None:
        """Run jobs until one is None."""
        seen = 0
        while True:
            if not wait_change(self.sync, JOB, seen, _WATCH_SPINS):
                self._parked[tid] = True
                # Either we see the new job here or its publisher saw the flag.
                while self.sync[JOB] == seen:
                    self._wake[tid].acquire()
                self._parked[tid] = False
            seen += 1
            if self._job is None:
                return
            function, args = self._job
            try:
                function(tid, self.n_threads, self.sync, *args)
            except BaseException as e:  # handed to the caller
                self._failure = e
                self.sync[ABORT] = 1
            count_up(self.sync, DONE)
