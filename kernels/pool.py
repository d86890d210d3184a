"""Worker threads that run one kernel together, the GIL released.

The caller is thread 0. The others are persistent Python threads that wait for a function to run
once (`run`), or for one that keeps them in compiled code over many jobs (`attach`, see `team`).
The only part of `kernels` that may use threads.
"""

import threading
from collections.abc import Callable
from typing import Any

from kernels.affinity import give_back_cpus, note_freedom
from kernels.entries import count_up, dismiss
from kernels.errors import InputError
from kernels.mode import JIT_DISABLED
from kernels.slices import ask_for_short_slices
from kernels.sync_words import ABORT, ALWAYS, CROWDED, DONE, JOB, SEEN, new_sync

__all__ = ["Pool"]


class Pool:
    """n_threads threads that enter the same function together.

    Args:
        n_threads: threads, the caller included.
        n_cores: cores that they may run on; None: as many as threads.

    Attributes:
        sync: the words by which the threads find each other, see `team`.

    Raises:
        InputError: n_threads below 1, or above 1 with JIT switched off.
    """

    def __init__(self, n_threads: int, n_cores: int | None = None) -> None:
        if n_threads < 1:
            raise InputError(f"a pool needs at least 1 thread, got {n_threads}; raise --threads")
        if n_threads > 1 and JIT_DISABLED:
            raise InputError("NUMBA_DISABLE_JIT allows only one thread; use --threads 1")
        self.n_threads = n_threads
        self.sync = new_sync(n_threads)
        note_freedom(self.sync)
        if n_threads > 1:
            # Compiled now: where they are needed nothing may fail any more.
            count_up(self.sync, DONE)
            dismiss(self.sync, 1)
            self.sync[DONE] = 0
        if n_cores is not None and n_threads > n_cores:
            # They take turns on the cores: whoever watches keeps another one from its work.
            self.sync[CROWDED] = ALWAYS
        self._job: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
        self._attached: tuple[Any, ...] | None = None
        self._failure: BaseException | None = None
        self._back = threading.Semaphore(0)
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
        self.detach()
        self._start((function, args))
        try:
            function(0, self.n_threads, self.sync, *args)
        except BaseException:
            self.sync[ABORT] = 1
            raise
        finally:
            self._join()
        self.check()

    def attach(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Have all workers inside function(tid, n_threads, sync, *args), which follows `team`.

        The caller may then call it as thread 0, once for each job, until something else is
        attached or run. Costs nothing if the same function and arrays are attached already. The
        calling thread gets short time slices and keeps them, see `slices`.

        Args:
            function: a kernel; it compiles before the workers enter it.
            args: the very same objects in each call count as the same.

        Raises:
            Exception: what a worker raised in its last job, as `check` does.
        """
        if self.n_threads == 1:
            return
        self.check()  # of a job that compiled code has run: who failed is back, and would be missed
        if self._is_attached(function, args):
            return
        self.detach()
        ask_for_short_slices()
        self.sync[SEEN] = self.sync[JOB]
        self._start((function, args))
        self._attached = (function, *args)

    def check(self) -> None:
        """Raise what a worker raised in its last job, if anything.

        Raises:
            Exception: that.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            self.detach()
            raise failure

    def abort(self) -> None:
        """Bring back workers from a job that thread 0 has left by an exception."""
        self.sync[ABORT] = 1
        self.detach()
        self._failure = None

    def close(self) -> None:
        """End the workers; the pool must not be used again."""
        if self._workers:
            self.detach()
            self._start(None)
            for worker in self._workers:
                worker.join()
            self._workers = []

    def _is_attached(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        attached = self._attached
        if attached is None or attached[0] is not function or len(attached) != 1 + len(args):
            return False
        return all(a is b for a, b in zip(attached[1:], args, strict=True))

    def detach(self) -> None:
        """Bring attached workers back to Python and let go of what they were attached with."""
        if self._attached is not None:
            self._attached = None
            dismiss(self.sync, self.n_threads)
            self._join()

    def _start(self, job: tuple[Callable[..., Any], tuple[Any, ...]] | None) -> None:
        """Hand workers that wait in Python a job."""
        self._job = job
        for tid in range(1, self.n_threads):
            self._wake[tid].release()

    def _join(self) -> None:
        """Wait until all workers are back in Python and make the words ready for the next job."""
        for _ in self._workers:
            self._back.acquire()
        self._job = None
        self.sync[:JOB] = 0
        give_back_cpus(self.sync)

    def _work(self, tid: int) -> None:
        """Run jobs until one is None."""
        ask_for_short_slices()
        while True:
            self._wake[tid].acquire()
            if self._job is None:
                return
            function, args = self._job
            try:
                function(tid, self.n_threads, self.sync, *args)
            except BaseException as e:  # handed to the caller
                self._failure = e
                self.sync[ABORT] = 1
                # Thread 0 may be waiting for this one's share of a job.
                count_up(self.sync, DONE)
            finally:
                self._back.release()
            del function, args
