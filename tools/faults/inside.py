"""This thread, and those that it starts, inside a host of an emulated network. Needs root."""

import contextlib
import ctypes
import os
from collections.abc import Iterator

from kernels.errors import ResourceError

__all__ = ["inside"]

_CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Be in a network namespace; sockets that are made meanwhile stay there.

    Raises:
        ResourceError: there is no such namespace, or this user may not enter it.
    """
    try:
        home, there = (os.open(p, os.O_RDONLY) for p in (
            "/proc/thread-self/ns/net", f"/var/run/netns/{namespace}"))  # fmt: skip
    except OSError as e:
        raise ResourceError(f"cannot enter network namespace {namespace!r}: {e.strerror}") from e
    try:
        _enter(there, namespace)
        yield
    finally:
        _enter(home, "home")
        os.close(home)
        os.close(there)


def _enter(fd: int, name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        why = os.strerror(ctypes.get_errno())
        raise ResourceError(f"cannot enter network namespace {name!r}: {why}")
