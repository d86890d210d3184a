"""How every kernel is compiled: once per needed dtype, cached on disk, the GIL released.

No fastmath: each addition is rounded as written, so a row's result is the same in every loop shape
that LLVM chooses and on every CPU. With JIT switched off FMA is imitated in float64, which rounds
otherwise once in 2^29.
"""

import contextlib
import fcntl
import select
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from numba import config
from numba import njit as _njit

import kernels.target  # noqa: F401, settles for which CPU numba compiles

__all__ = ["JIT_DISABLED", "inner", "kernel", "merged"]

njit: Any = _njit  # its type stub lacks some options

F = TypeVar("F", bound=Callable[..., object])

# Who holds a lock writes some 100 kB; it may stand still, on a full disk or stopped by somebody.
SAVE_TRIES = 1000  # 10 ms each

JIT_DISABLED = bool(getattr(config, "DISABLE_JIT", 0))

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}


def kernel(function: F) -> F:
    """Compile a module-level function that Python calls; its signature stays visible to mypy."""
    compiled: F = njit(**_OPTIONS, cache=True)(function)
    file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if file is not None:  # there is none where JIT is off
        _save_one_at_a_time(file)
    return compiled


def _save_one_at_a_time(file: Any) -> None:
    """Lock numba's cache of one function while an entry is saved.

    numba reads the index, adds a name for the new entry and writes both back. Of two processes
    that do so at once the second overwrites the first one's entry, and what was compiled for other
    arguments is found under its key from then on.
    """
    save = file.save

    def locked(key: Any, data: Any) -> None:
        with _locked(f"{file._index_path}.lock") as is_ours:
            if is_ours:  # else it is compiled again the next time
                save(key, data)

    file.save = locked


@contextlib.contextmanager
def _locked(path: str) -> Iterator[bool]:
    """Hold a lock among processes, or say that it could not be had in time."""
    pause = select.poll()  # with nothing to wait for; kernels know no clock
    with open(path, "ab") as lock:
        for _ in range(SAVE_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pause.poll(10)
            else:
                yield True
                return
        yield False


def inner(function: F) -> F:
    """Compile a function that only other kernels call.

    It has no entry from Python, whose unboxing code would be most of what LLVM has to compile,
    and no cache of its own: the kernel that calls it is cached with everything in it. Python must
    never call it: numba does not notice and the process crashes.
    """
    compiled: F = njit(**_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return compiled


def merged(function: F) -> F:
    """Have numba merge the function into its one caller before typing.

    Cheaper to compile than `inner`, which LLVM optimises on its own and again in every caller.
    """
    compiled: F = njit(**_OPTIONS, inline="always")(function)
    return compiled
