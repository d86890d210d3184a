"""Files that are whole or not there: written aside, synced, renamed. And what torn ends leave."""

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path

__all__ = ["is_disk_trouble", "remove_strays", "write_file"]

# `.NAME.PID`, as `write_file` names what it writes aside.
_ASIDE = re.compile(r"\..+\.(\d{1,10})")
_DISK_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
    errno.EFBIG, errno.ENOENT, errno.ESTALE,
}  # fmt: skip


def is_disk_trouble(error: OSError) -> bool:
    """Tell whether a cache cannot be used: full, read-only, not ours to write, or removed."""
    return error.errno in _DISK_ERRNOS


def write_file(path: Path, data: bytes) -> None:
    """Write a file aside, sync it and rename it into place; nothing is left on failure."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def remove_strays(directory: Path) -> int:
    """Remove what dead processes were writing or removing aside; return how many there were."""
    n_removed = 0
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            match = _ASIDE.fullmatch(path.name)
            if match is None or _is_alive(int(match[1])):
                continue
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                n_removed += 1
    return n_removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
