"""How every kernel is compiled: once per needed dtype, cached on disk, the GIL released.

No fastmath: each addition is rounded as written, so a row's result is the same in every
loop shape that LLVM chooses, on every CPU, and with JIT switched off.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import config
from numba import njit as _njit

__all__ = ["JIT_DISABLED", "inner", "kernel", "merged"]

njit: Any = _njit  # its type stub lacks some options

F = TypeVar("F", bound=Callable[..., object])

JIT_DISABLED = bool(getattr(config, "DISABLE_JIT", 0))

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}


def kernel(function: F) -> F:
    """Compile a module-level function that Python calls; its signature stays visible to mypy."""
    compiled: F = njit(**_OPTIONS, cache=True)(function)
    return compiled


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
