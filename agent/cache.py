"""The content-addressed cache of pulled atoms: one sparse weights.bin per model.

    <root>/models/<model_id>/manifest.json   written aside, synced, renamed
                             weights.bin     sparse; atoms at the offsets of the model's own file
                             journal         32-byte records of atoms that are written and synced
                             chunks          chunks of atoms that are not whole yet (`chunk_log`)
                             lock            held by the one process that writes
                             users           held, shared, by all that have it open; its time of
                                             change is the last use

Whoever maps weights.bin holds it shared, and that ends with the mapping itself, which may outlive
`users` (`shared_map`). Parts of the file are given back only by the one that writes, while nobody
else has it mapped: all others must take `lock` before they map it or believe the journal.

An atom counts as present only when the journal names it with the manifest's hash; its record is
appended after its bytes were synced. A torn or foreign journal tail is cut off. Atoms from the
journal are hashed again when they are mapped (`store`), so bit rot on an SD card is found.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import time
import weakref
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.chunk_log import ChunkLog, ChunkRecord
from agent.files import remove_strays, write_file
from agent.holes import gaps, punch_hole
from agent.ids import ModelId
from agent.journal import JOURNAL_NAME, append_journal, keep_in_journal, read_journal
from agent.shared_map import SharedMap
from kernels.errors import ModelError
from weights.directory import MANIFEST_NAME, WEIGHTS_NAME
from weights.manifest import AtomLocation, Manifest, content_hash

__all__ = ["CacheEntry", "default_cache_root"]

HOLD_ATTEMPTS = 50
HOLD_POLL_S = 0.02


def default_cache_root() -> Path:
    """Return where this user's cache lives: $XDG_CACHE_HOME or ~/.cache, then headwise."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "headwise"


class CacheEntry:
    """One model in the cache, held against removal as long as this object lives.

    Args:
        root: the cache directory.
        model_id: the model's hash.

    Raises:
        OSError: the directory cannot be made.
    """

    def __init__(self, root: Path, model_id: ModelId) -> None:
        self.root = root
        self.model_id = model_id
        self.directory = root / "models" / model_id
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._manifest_path = self.directory / MANIFEST_NAME
        self._weights_path = self.directory / WEIGHTS_NAME
        self._lock_fd = -1
        self._weights_fd = -1
        self._map: SharedMap | None = None
        self._unsynced: list[AtomLocation] = []
        self._log: ChunkLog | None = None
        self._let_go: weakref.finalize[..., CacheEntry] | None = None
        self.hold()

    def hold(self) -> None:
        """Note that the entry is in use now, and keep others from removing it.

        Raises:
            OSError: the directory is gone or not ours to write.
        """
        path = self.directory / "users"
        # A remover holds the file for a moment, and the directory is gone with it.
        for _ in range(HOLD_ATTEMPTS):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.fstat(fd).st_ino == path.stat().st_ino:
                    os.utime(fd)
                    self.close()
                    self._let_go = weakref.finalize(self, os.close, fd)
                    return
            os.close(fd)
            time.sleep(HOLD_POLL_S)
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        raise OSError(errno.ESTALE, f"{self.directory} is being removed")

    def close(self) -> None:
        """Let others remove the entry."""
        if self._let_go is not None:
            self._let_go()

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
        if self._log is not None:
            self._log.close()
            self._log = None

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
            self._forget_all()
            path.unlink()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if self._map is None or self._map.inode != os.fstat(fd).st_ino:
                if os.fstat(fd).st_size == 0:
                    self._forget_all()
                    os.ftruncate(fd, n_bytes)
                self._map = SharedMap(fd, n_bytes)
        finally:
            os.close(fd)
        return self._map.array

    def present(self, atoms: Iterable[AtomLocation]) -> set[int]:
        """Return the offsets of those atoms that the journal names with their hash."""
        journal = read_journal(self.directory)
        return {a.offset_bytes for a in atoms if journal.get(a.offset_bytes) == a.hash}

    def write(self, atom: AtomLocation, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write a chunk of an atom, or all of it, from `offset` on. Needs the lock and the map.

        Raises:
            OSError: the disk is full or fails.
        """
        # Written, never stored through the mapping: a full disk must be an error, not a SIGBUS.
        view, at = memoryview(data), atom.offset_bytes + offset
        fd = self._open_weights()
        while view:
            n_written = os.pwrite(fd, view, at)
            view, at = view[n_written:], at + n_written
        record = ChunkRecord(atom.offset_bytes, offset, len(data), zlib.crc32(data))
        self._open_log().add(record)

    def chunks(self, atom: AtomLocation) -> list[tuple[int, bytes]]:
        """Return the chunks of an unfinished atom that are here and sound, (offset, bytes)."""
        found, fd = [], self._open_weights()
        for record in self._open_log().chunks(atom.offset_bytes):
            if record.start + record.n_bytes <= atom.n_bytes:
                data = os.pread(fd, record.n_bytes, atom.offset_bytes + record.start)
                if zlib.crc32(data) == record.crc32:
                    found.append((record.start, data))
        return found

    def finish(self, atom: AtomLocation) -> None:
        """Note that an atom is written and verified; `sync` makes it count. Needs the lock."""
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
        os.fdatasync(self._open_weights())
        append_journal(self.directory, atoms)
        self._open_log().forget(atom.offset_bytes for atom in atoms)

    def forget(self, atoms: Iterable[AtomLocation]) -> None:
        """Take damaged atoms out of the journal. Needs the lock."""
        damaged = {a.offset_bytes for a in atoms}
        keep_in_journal(self.directory, read_journal(self.directory).keys() - damaged)
        self._open_log().forget(damaged)

    def noted_bytes(self, atoms: Iterable[AtomLocation]) -> int:
        """Return how many bytes of unfinished atoms are on the disk. Needs the lock."""
        log = self._open_log()
        return sum(log.covered_bytes(a.offset_bytes, a.n_bytes) for a in atoms)

    @property
    def weights_disk_bytes(self) -> int:
        """The disk that weights.bin takes."""
        return 512 * self._weights_path.stat().st_blocks

    def keep_only(self, atoms: Iterable[AtomLocation]) -> bool:
        """Forget all other atoms and give their disk back. Needs the lock and the map.

        Returns:
            False if anybody else has the file mapped or that cannot be told; nothing has changed.

        Raises:
            OSError: EOPNOTSUPP or ENOSYS, the filesystem cannot, and nothing has changed; or the
                disk fails.
        """
        assert self._map is not None
        with self._map.alone() as is_alone:
            if is_alone:
                self._keep_only(self._map.fd, {atom.offset_bytes: atom for atom in atoms})
        return is_alone

    def _keep_only(self, fd: int, kept: dict[int, AtomLocation]) -> None:
        n_bytes = os.fstat(fd).st_size
        # Asked where nothing can be lost, behind the end, before the journal forgets.
        punch_hole(fd, n_bytes, mmap.PAGESIZE)
        # The journal first: a power cut in between leaves bytes that nobody believes.
        keep_in_journal(self.directory, kept.keys())
        self._open_log().keep_only(kept.keys())
        for start, end in gaps(kept.values(), n_bytes):
            punch_hole(fd, start, end - start)

    def clean(self) -> None:
        """Remove what dead processes left half-written. Needs the lock."""
        for directory in (self.directory, self.directory.parent):
            remove_strays(directory)

    def _forget_all(self) -> None:
        (self.directory / JOURNAL_NAME).unlink(missing_ok=True)
        self._open_log().forget_all()

    def _open_weights(self) -> int:
        if self._weights_fd < 0:
            self._weights_fd = os.open(self._weights_path, os.O_RDWR | os.O_CLOEXEC)
        return self._weights_fd

    def _open_log(self) -> ChunkLog:
        if self._log is None:
            self._log = ChunkLog(self.directory / "chunks")
        return self._log
