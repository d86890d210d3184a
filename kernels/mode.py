"""How numba is told to treat kernels, known without importing it."""

import os

__all__ = ["BOUNDS_CHECKED", "JIT_DISABLED"]


def _is_set(name: str) -> bool:
    """Read a variable as numba does: a number, and anything else counts as not set."""
    try:
        return int(os.environ.get(name, "0") or 0) != 0
    except ValueError:
        return False


JIT_DISABLED = _is_set("NUMBA_DISABLE_JIT")
BOUNDS_CHECKED = _is_set("NUMBA_BOUNDSCHECK")
