"""Atoms that were pulled: in the cache or, without a writable disk, in anonymous memory.

Chunks are kept as they arrive, so that a pull that is broken off, in this process or a former
one, goes on where it stopped.
"""

import logging
import mmap
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from threading import Event

import numpy as np

from agent.cache import CacheEntry
from agent.cache_room import make_room
from agent.files import is_disk_trouble
from agent.pull import Chunk, Wanted
from agent.puller import Cancelled, Sink
from agent.store import Puller, Store
from kernels.errors import ResourceError
from weights.manifest import AtomLocation, Manifest, content_hash

__all__ = ["CacheStore"]

log = logging.getLogger(__name__)

SYNC_BYTES = 32 << 20
LOCK_POLL_S = 0.2


class CacheStore(Store):
    """Pulled atoms of one model.

    Args:
        manifest: the model's manifest.
        entry: its place in the cache, or None for memory alone.
        memory_bytes: most anonymous memory for weights.
        n_threads: threads that hash.
        limit_bytes: most disk that the whole cache may take; None for all there is.
    """

    def __init__(
        self,
        manifest: Manifest,
        entry: CacheEntry | None,
        memory_bytes: int,
        n_threads: int,
        limit_bytes: int | None = None,
    ) -> None:
        super().__init__(manifest, np.empty(0, np.uint8), n_threads)
        self._entry = entry
        self._memory_bytes = memory_bytes
        self._limit_bytes = limit_bytes
        self._memory_chunks: dict[int, list[tuple[int, int]]] = {}

    @property
    def in_memory(self) -> bool:
        """Whether the atoms live in anonymous memory."""
        return self._entry is None

    def close(self) -> None:
        """Let others remove the model from the cache."""
        if self._entry is not None:
            self._entry.close()

    def ensure(
        self,
        atoms: Sequence[AtomLocation],
        pull: Puller,
        touched: Callable[[int], None],
        cancelled: Event,
    ) -> int:
        """Verify what the journal names and pull the rest; see Store."""
        if self._entry is not None:
            try:
                return self._ensure_cached(self._entry, atoms, pull, touched, cancelled)
            except OSError as e:
                if not is_disk_trouble(e):
                    raise
                log.warning(
                    "cache %s fails (%s); running from memory",
                    self._entry.directory, e.strerror or e,
                )  # fmt: skip
                self._leave_cache()
        if not len(self.weights):
            self._allocate(atoms)
        missing = [a for a in atoms if a.offset_bytes not in self._verified]
        return _pull(missing, pull, _MemorySink(missing, self))

    def _ensure_cached(
        self,
        entry: CacheEntry,
        atoms: Sequence[AtomLocation],
        pull: Puller,
        touched: Callable[[int], None],
        cancelled: Event,
    ) -> int:
        _wait_lock(entry, cancelled)
        try:
            entry.hold()
            entry.clean()
            weights = entry.map_weights(self.manifest.weights_bytes)
            if weights is not self.weights:
                self.weights, self._verified = weights, {}
            present = entry.present(atoms)
            known = [a for a in atoms if a.offset_bytes in present]
            damaged = self._check_hashes(known, touched, cancelled)
            if damaged:
                log.warning("cache %s: %d damaged atoms", entry.directory, len(damaged))
                entry.forget(damaged)
            missing = [a for a in atoms if a.offset_bytes not in self._verified]
            if missing and self._limit_bytes is not None:
                n_bytes = sum(a.n_bytes for a in missing)
                make_room(entry.root, entry.model_id, n_bytes, self._limit_bytes)
            try:
                return _pull(missing, pull, _CacheSink(missing, entry, self._verified))
            finally:
                entry.sync()
        finally:
            entry.unlock()

    def _allocate(self, atoms: Sequence[AtomLocation]) -> None:
        """Reserve anonymous memory of the file's size; only atoms that are written take any."""
        n_bytes = sum(a.n_bytes for a in atoms)
        if n_bytes > self._memory_bytes:
            raise ResourceError(
                f"{n_bytes} bytes of weights fit neither the cache's disk nor the "
                f"{self._memory_bytes} bytes of memory offered; free disk space, raise "
                f"--cache-limit or name another place with --cache-dir"
            )
        mapping = mmap.mmap(-1, self.manifest.weights_bytes)
        self.weights = np.frombuffer(mapping, np.uint8)

    def _leave_cache(self) -> None:
        """Go on without the cache: mapped atoms are copied.

        What the journal names stays for the next start, and for other agents that use the entry.
        """
        old, kept = self.weights, self._verified
        self.close()
        self._entry, self.weights, self._verified = None, np.empty(0, np.uint8), {}
        held = list(kept.values())
        if held:
            self._allocate(held)
        for atom in held:
            data = bytearray(old[atom.offset_bytes :][: atom.n_bytes])
            # Hashed again: a disk that fails to sync may have lost what was written.
            if content_hash(memoryview(data)) == atom.hash:
                self.put(atom, 0, data)
                self._verified[atom.offset_bytes] = atom

    def put(self, atom: AtomLocation, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes of an atom into anonymous memory."""
        at = atom.offset_bytes + offset
        self.weights[at : at + len(data)] = np.frombuffer(data, np.uint8)


class _AtomSink(Sink):
    """Puts pulled objects at every place of theirs; counts the bytes that came over the wire."""

    def __init__(self, atoms: Iterable[AtomLocation], verified: dict[int, AtomLocation]) -> None:
        self.places: dict[str, list[AtomLocation]] = {}
        for atom in atoms:
            self.places.setdefault(atom.hash, []).append(atom)
        self.verified = verified
        self.n_bytes = 0

    def keep(self, chunk: Chunk) -> None:
        """Write a chunk to the first place of its object."""
        self.n_bytes += len(chunk.data)
        self.write(self.places[chunk.wanted.object_id][0], chunk.offset, chunk.data)

    def take(self, wanted: Wanted, data: bytearray) -> None:
        """Write a whole object to its other places, and count all of them as here."""
        atoms = self.places[wanted.object_id]
        for atom in atoms[1:]:
            self.write(atom, 0, data)
        for atom in atoms:
            self.finish(atom)
            self.verified[atom.offset_bytes] = atom

    @abstractmethod
    def write(self, atom: AtomLocation, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes of an atom."""

    @abstractmethod
    def finish(self, atom: AtomLocation) -> None:
        """Note that an atom is whole."""


class _CacheSink(_AtomSink):
    """Writes to the cache, which is synced now and then."""

    def __init__(
        self, atoms: Iterable[AtomLocation], entry: CacheEntry, verified: dict[int, AtomLocation]
    ) -> None:
        super().__init__(atoms, verified)
        self._entry = entry
        self._n_unsynced = 0

    def resume(self, wanted: Wanted) -> Iterable[tuple[int, bytes]]:
        """Return chunks that this or another process kept."""
        return self._entry.chunks(self.places[wanted.object_id][0])

    def write(self, atom: AtomLocation, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes of an atom."""
        self._entry.write(atom, offset, data)

    def finish(self, atom: AtomLocation) -> None:
        """Note that an atom is whole."""
        self._entry.finish(atom)
        self._n_unsynced += atom.n_bytes
        if self._n_unsynced >= SYNC_BYTES:
            self._entry.sync()
            self._n_unsynced = 0


class _MemorySink(_AtomSink):
    """Writes to anonymous memory; chunks of unfinished atoms stay for the next pull."""

    def __init__(self, atoms: Iterable[AtomLocation], store: CacheStore) -> None:
        super().__init__(atoms, store._verified)
        self._store = store
        self._chunks = store._memory_chunks

    def resume(self, wanted: Wanted) -> Iterable[tuple[int, bytes]]:
        """Return chunks that a former pull of this process kept."""
        atom = self.places[wanted.object_id][0]
        blob = self._store.blob(atom)
        for offset, end in self._chunks.get(atom.offset_bytes, ()):
            yield offset, blob[offset:end].tobytes()

    def write(self, atom: AtomLocation, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes of an atom."""
        self._store.put(atom, offset, data)
        self._chunks.setdefault(atom.offset_bytes, []).append((offset, offset + len(data)))

    def finish(self, atom: AtomLocation) -> None:
        """Note that an atom is whole."""
        self._chunks.pop(atom.offset_bytes, None)


def _pull(atoms: Sequence[AtomLocation], pull: Puller, sink: _AtomSink) -> int:
    wanted = [Wanted(name, at[0].n_bytes, str(at[0])) for name, at in sink.places.items()]
    if wanted:
        pull(wanted, sink)
    return sink.n_bytes


def _wait_lock(entry: CacheEntry, cancelled: Event) -> None:
    while not entry.try_lock():
        if cancelled.wait(LOCK_POLL_S):
            raise Cancelled("the assignment was withdrawn")
