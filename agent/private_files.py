"""Files that hold secrets: for their owner alone from the first byte on, whole or not there."""

import contextlib
import os
import stat
from pathlib import Path

from kernels.errors import InputError

__all__ = ["check_private_directory", "put_private", "read_private", "sync_directory", "write_new"]


def read_private(path: Path, max_bytes: int) -> bytes:
    """Read a small file that nobody but its owner, this user, may read.

    Raises:
        InputError: it is missing, too large, no file, another user's, or open to others.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            # The open file is judged: the path might be replaced meanwhile.
            _check_private(path, os.fstat(fd))
            data = file.read(max_bytes + 1)
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror})") from e
    if len(data) > max_bytes:
        raise InputError(f"{path} has more than {max_bytes} bytes; it is no key file")
    return data


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is no regular file")
    if status.st_uid != os.geteuid():
        raise InputError(
            f"{path} holds a secret and belongs to user {status.st_uid}, not to {os.geteuid()} "
            f"who reads it; run as its owner, or: sudo chown {os.geteuid()} {path}"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise InputError(
            f"{path} holds a secret and has mode {mode:04o}, so others may reach it; "
            f"run: chmod 600 {path}"
        )


def check_private_directory(path: Path) -> None:
    """Raise InputError if a directory is another user's or open to others."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise InputError(
            f"{path} belongs to user {status.st_uid}, not to {os.geteuid()} who uses it; run as "
            f"its owner, or choose another directory with --keys"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise InputError(
            f"{path} has mode {mode:04o}, so others may reach the keys in it; run: chmod 700 {path}"
        )


def put_private(path: Path, data: bytes, replace: bool = False) -> None:
    """Write a file so that it is there whole or not at all, and only for its owner.

    Raises:
        OSError: it cannot be written; FileExistsError: it is there and shall not be replaced.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        write_new(aside, data)
        if replace:
            aside.replace(path)
        else:
            os.link(aside, path)  # fails where a rename would overwrite
    finally:
        aside.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, and that was not there before.

    Raises:
        OSError: FileExistsError, or it cannot be written; then nothing stays behind.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            # A strange umask must not keep the owner out either.
            os.fchmod(fd, 0o600)
            file.write(data)
            file.flush()
            os.fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def sync_directory(path: Path) -> None:
    """Make sure that what was renamed or removed in a directory stays so after a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
