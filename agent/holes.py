"""What lies between atoms, and how a file gives such parts of its disk back."""

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator

from weights.manifest import AtomLocation

__all__ = ["gaps", "punch_hole"]

# <linux/falloc.h>
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02


def gaps(atoms: Iterable[AtomLocation], end_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) in bytes of all that lies between atoms, from 0 to end_bytes."""
    start = 0
    for atom in sorted(atoms, key=lambda atom: atom.offset_bytes):
        if atom.offset_bytes > start:
            yield start, atom.offset_bytes
        start = max(start, atom.offset_bytes + atom.n_bytes)
    if start < end_bytes:
        yield start, end_bytes


def punch_hole(fd: int, start: int, n_bytes: int) -> None:
    """Make bytes of a file zeros that take no disk, as far as they fill whole blocks.

    Python's os has posix_fallocate alone, which cannot.

    Raises:
        OSError: EOPNOTSUPP or ENOSYS, this filesystem or system has no holes; or the disk fails.
    """
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, start, n_bytes) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
