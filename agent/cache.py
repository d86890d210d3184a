"""The content-addressed cache of pulled atoms: one sparse weights.bin per model.

    <root>/models/<model_id>/manifest.json   written aside, synced, renamed
                             weights.bin     sparse; atoms at the offsets of the model's own file
                             journal         32-byte records of atoms that are written and synced
                             lock            held by the one process that writes

An atom counts as present only when the journal names it with the manifest's hash; its record is
appended after its bytes were synced. A torn or foreign journal tail is cut off. Atoms from the
journal are hashed again when they are mapped (`store`), so bit rot on an SD card is found.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.ids import ModelId
from kernels.errors import ModelError
from weights.manifest import AtomLocation, Manifest, content_hash

__all__ = ["CacheEntry", "default_cache_root", "is_disk_trouble", "write_file"]

_RECORD = struct.Struct("<QI16sI")
_DISK_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
    errno.EFBIG, errno.ENOENT, errno.ESTALE,
}  # fmt: skip


def default_cache_root() -> Path:
    """Return where this user's cache lives: $XDG_CACHE_HOME or ~/.cache, then headwise."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "headwise"


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


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class CacheEntry:
    """One model in the cache.

    Args:
        root: the cache directory.
        model_id: the model's hash.

    Raises:
        OSError: the directory cannot be made.
    """

    def __init__(self, root: Path, model_id: ModelId) -> None:
        self.model_id = model_id
        self.directory = root / "models" / model_id
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._manifest_path = self.directory / "manifest.json"
        self._weights_path = self.directory / "weights.bin"
        self._journal_path = self.directory / "journal"
        self._lock_fd = -1
        self._weights_fd = -1
        self._mapped: tuple[int, npt.NDArray[np.uint8]] | None = None
        self._unsynced: list[AtomLocation] = []

    def read_manifest(self) -> Manifest | None:
        """Return the cached manifest, or None if there is none with the model's hash."""
        try:
            data = self._manifest_path.read_bytes()
        except OSError:
            return None
        if content_hash(data) != self.model_id:
            return None
        with contextlib.suppress(ModelError):
            return Manifest.parse(data)
        return None

    def write_manifest(self, data: bytes) -> None:
        """Keep the manifest's bytes."""
        write_file(self._manifest_path, data)

    def try_lock(self) -> bool:
        """Become the one writer; False while another process is.

        Raises:
            OSError: the lock file cannot be made.
        """
        path = self.directory / "lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Somebody may have deleted the cache between the two calls above.
            if os.fstat(fd).st_ino == path.stat().st_ino:
                self._lock_fd, fd = fd, -1
                return True
        except (BlockingIOError, FileNotFoundError):
            return False
        finally:
            if fd >= 0:
                os.close(fd)
        return False

    def unlock(self) -> None:
        """Let another process write."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
        if self._weights_fd >= 0:
            os.close(self._weights_fd)
            self._weights_fd = -1

    def map_weights(self, n_bytes: int) -> npt.NDArray[np.uint8]:
        """Map weights.bin read-only, (n_bytes,) uint8, creating it sparse. Needs the lock.

        Returns the same array as before unless the file was replaced meanwhile. A file of
        another size is no work of ours and is replaced, with its journal.

        Raises:
            OSError: the file cannot be made.
        """
        path = self._weights_path
        if path.exists() and path.stat().st_size != n_bytes:
            # Removed, not truncated: another process may have it mapped.
            self._journal_path.unlink(missing_ok=True)
            path.unlink()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            inode = os.fstat(fd).st_ino
            if self._mapped is None or self._mapped[0] != inode:
                if os.fstat(fd).st_size == 0:
                    self._journal_path.unlink(missing_ok=True)
                    os.ftruncate(fd, n_bytes)
                mapping = mmap.mmap(fd, n_bytes, access=mmap.ACCESS_READ)
                self._mapped = inode, np.frombuffer(mapping, np.uint8)
        finally:
            os.close(fd)
        return self._mapped[1]

    def present(self, atoms: Iterable[AtomLocation]) -> set[int]:
        """Return the offsets of those atoms that the journal names with their hash."""
        journal = self._read_journal()
        return {a.offset_bytes for a in atoms if journal.get(a.offset_bytes) == a.hash}

    def _read_journal(self) -> dict[int, str]:
        try:
            data = self._journal_path.read_bytes()
        except OSError:
            return {}
        return dict(_parse(data))

    def write(self, atom: AtomLocation, data: bytes | bytearray) -> None:
        """Write one verified atom; `sync` makes it count. Needs the lock.

        Raises:
            OSError: the disk is full or fails.
        """
        if self._weights_fd < 0:
            self._weights_fd = os.open(self._weights_path, os.O_RDWR | os.O_CLOEXEC)
        # Written, never stored through the mapping: a full disk must be an error, not a SIGBUS.
        view, at = memoryview(data), atom.offset_bytes
        while view:
            n_written = os.pwrite(self._weights_fd, view, at)
            view, at = view[n_written:], at + n_written
        self._unsynced.append(atom)

    def sync(self) -> None:
        """Sync what was written and name it in the journal. Needs the lock.

        Raises:
            OSError: the disk is full or fails.
        """
        # Forgotten first: a sync that is tried again after it failed may hide what was lost.
        atoms, self._unsynced = self._unsynced, []
        if not atoms:
            return
        os.fdatasync(self._weights_fd)
        records = b"".join(_record(atom) for atom in atoms)
        fd = os.open(self._journal_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            end = _RECORD.size * len(_parse(os.pread(fd, os.fstat(fd).st_size, 0)))
            os.ftruncate(fd, end)
            if os.pwrite(fd, records, end) != len(records):
                raise OSError(errno.ENOSPC, f"{self._journal_path} cannot grow")
            os.fsync(fd)
        finally:
            os.close(fd)

    def forget(self, atoms: Iterable[AtomLocation]) -> None:
        """Take damaged atoms out of the journal. Needs the lock."""
        damaged = {a.offset_bytes for a in atoms}
        kept = [(o, h) for o, h in self._read_journal().items() if o not in damaged]
        write_file(self._journal_path, b"".join(_pack(offset, 0, name) for offset, name in kept))


def _parse(journal: bytes) -> list[tuple[int, str]]:
    """Return offset and hash of each record up to the first that is torn."""
    records = []
    for at in range(0, len(journal) - _RECORD.size + 1, _RECORD.size):
        offset, _, name, crc = _RECORD.unpack_from(journal, at)
        if zlib.crc32(journal[at : at + _RECORD.size - 4]) != crc:
            break
        records.append((offset, name.hex()))
    return records


def _record(atom: AtomLocation) -> bytes:
    return _pack(atom.offset_bytes, atom.n_bytes, atom.hash)


def _pack(offset_bytes: int, n_bytes: int, name: str) -> bytes:
    body = _RECORD.pack(offset_bytes, n_bytes, bytes.fromhex(name), 0)[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")
