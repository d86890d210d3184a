"""Short time slices for threads that others wait for at barriers.

From Linux 6.12 on a thread may ask how long it runs at a time while others want its CPU. Threads
that ask for little get the CPU sooner after each wait, as often as it takes to get their fair
part of it. Older kernels keep to their own slices.
"""

import contextlib
import ctypes
import os
import platform

__all__ = ["ask_for_short_slices"]

# The kernel's own shortest slice; what it allows begins at 0.1 ms.
_SLICE_NS = 700_000
# sched_getattr and sched_setattr: libraries did not know them for long.
_CALLS = {"x86_64": (315, 314), "aarch64": (275, 274)}
_NOT_FOR_CHILDREN = 1  # SCHED_FLAG_RESET_ON_FORK


class _Attributes(ctypes.Structure):
    """The first version of struct sched_attr, 48 bytes."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    )


def ask_for_short_slices() -> None:
    """Ask for them for the calling thread, if it is an ordinary one; nothing where that fails."""
    calls = _CALLS.get(platform.machine())
    if calls is None or platform.system() != "Linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        system = ctypes.CDLL(None).syscall
        attributes, n_bytes = _Attributes(), ctypes.sizeof(_Attributes)
        found = system(calls[0], 0, ctypes.byref(attributes), n_bytes, 0)
        # Children of a favoured thread would lose its favour along with the slices.
        if found == 0 and attributes.policy == os.SCHED_OTHER and attributes.nice >= 0:
            attributes.runtime_ns = _SLICE_NS
            attributes.flags = _NOT_FOR_CHILDREN
            system(calls[1], 0, ctypes.byref(attributes), 0)
