"""Writes a directory aside, syncs and renames it: it is there whole or not at all."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from kernels.errors import HeadwiseError, InputError, ResourceError

__all__ = ["OutputDirectory", "OutputFile"]

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _write(fd: int, data: memoryview) -> int:
    # A function of its own so that tests can fill the disk.
    return os.write(fd, data)


def _disk_error(error: OSError, path: Path) -> HeadwiseError:
    reason = error.strerror or str(error)
    if error.errno in _DISK_FULL:
        return ResourceError(
            f"the disk of '{path}' is full ({reason}); free some space or choose another OUT"
        )
    return InputError(f"cannot write '{path}': {reason}; choose an OUT that can be written")


class OutputFile:
    """A file written from start to end, with zero padding on request."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self.n_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append all bytes; raises OSError."""
        view = memoryview(data)
        while view:
            n_written = _write(self._fd, view)
            self.n_bytes += n_written
            view = view[n_written:]

    def pad_to(self, multiple: int) -> None:
        """Append zeros until the size is a multiple of `multiple`."""
        self.write(bytes(-self.n_bytes % multiple))

    def abandon(self) -> None:
        """Close without syncing, for a file that is about to be removed."""
        os.close(self._fd)

    def close(self) -> None:
        """Bring the bytes to the disk and close; raises OSError."""
        try:
            os.fsync(self._fd)
        finally:
            os.close(self._fd)


class OutputDirectory:
    """A directory that appears at `path` when the with-block ends well.

    Until then it lies beside `path` under a hidden name; any error, Ctrl-C included, removes
    it. OSErrors inside the block come out as ResourceError (disk full) or InputError.

    Args:
        path: must not exist; its parent must.
        needed_bytes: checked against the free space before anything is written.
    """

    def __init__(self, path: Path, needed_bytes: int) -> None:
        self.path = path
        self._needed_bytes = needed_bytes
        self._temporary = Path()
        self._files: list[OutputFile] = []

    def _check(self) -> None:
        if os.path.lexists(self.path):
            raise InputError(f"'{self.path}' exists; remove it or choose another OUT")
        parent = self.path.absolute().parent
        if not parent.is_dir():
            raise InputError(f"'{parent}' is no directory; create it or choose another OUT")
        free_bytes = shutil.disk_usage(parent).free
        if free_bytes < self._needed_bytes:
            raise ResourceError(
                f"'{self.path}' needs {self._needed_bytes} bytes, but its disk has only "
                f"{free_bytes} free; free {self._needed_bytes - free_bytes} bytes or choose "
                f"another OUT"
            )

    def __enter__(self) -> "OutputDirectory":
        self._check()
        parent = self.path.absolute().parent
        try:
            made = tempfile.mkdtemp(".partial", f".{self.path.name}.", parent)
        except OSError as error:
            raise _disk_error(error, self.path) from error
        self._temporary = Path(made)
        umask = os.umask(0)
        os.umask(umask)
        self._temporary.chmod(0o777 & ~umask)
        return self

    def create(self, name: str) -> OutputFile:
        """Start a file of the directory; it is synced and closed at the end of the block."""
        file = OutputFile(self._temporary / name)
        self._files.append(file)
        return file

    def _publish(self) -> None:
        while self._files:
            self._files.pop().close()
        self._sync(self._temporary)
        # rename() would replace an empty directory that appeared meanwhile.
        self._check_still_free()
        self._temporary.rename(self.path)
        self._sync(self.path.absolute().parent)

    def _check_still_free(self) -> None:
        if os.path.lexists(self.path):
            raise InputError(f"'{self.path}' appeared while converting; choose another OUT")

    @staticmethod
    def _sync(directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _discard(self) -> None:
        while self._files:
            self._files.pop().abandon()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._publish()
        except OSError as failure:
            error = failure
            raise _disk_error(failure, self.path) from failure
        except BaseException as failure:
            error = failure
            raise
        finally:
            if error is not None:
                self._discard()
        if isinstance(error, OSError):
            raise _disk_error(error, self.path) from error
