"""A file that is mapped, and the lock that tells others so for as long as anybody reads it."""

import contextlib
import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator

import numpy as np

__all__ = ["SharedMap"]


class SharedMap:
    """A file mapped read-only and held shared (flock) as long as any view of it lives.

    The mapping keeps the open file, and that keeps the lock: it ends neither with this object nor
    with any descriptor, but when the last array goes or the process dies.

    Args:
        fd: the file, open for reading and writing; the caller closes it.
        n_bytes: its size.

    Attributes:
        inode: the file's number.
        fd: the file, whatever has its name by now; closed with this object.
        array: (n_bytes,) uint8, read-only.

    Raises:
        OSError: it cannot be locked or mapped.
    """

    def __init__(self, fd: int, n_bytes: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self.inode = os.fstat(fd).st_ino
        self.array = np.frombuffer(mmap.mmap(fd, n_bytes, access=mmap.ACCESS_READ), np.uint8)
        # The same open file again: the one way to change the mapping's lock.
        self.fd = os.dup(fd)
        weakref.finalize(self, os.close, self.fd)

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold the file alone; yields False if another mapping of it lives, here or elsewhere.

        For one at a time: callers have a lock of their own that keeps others out.
        """
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_alone = True
        except OSError:
            # Also where it cannot be told. The attempt let go of what we had, see below.
            is_alone = False
        try:
            yield is_alone
        finally:
            # To be had at once: nobody else may hold the file alone now.
            fcntl.flock(self.fd, fcntl.LOCK_SH)
