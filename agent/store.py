"""The weights of one model on this board: mapped, verified, and pulled where they are missing.

Three places look alike from outside, a uint8 array with every atom at the offset of the model's
own weights.bin: a model directory given by the user, the cache, and, if the disk is full or
read-only, anonymous memory. Mapped once per model and kept when plans come and go.
"""

import logging
import mmap
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import numpy.typing as npt

from agent.bulk import Cancelled
from agent.cache import CacheEntry, is_disk_trouble
from agent.ids import ModelId
from agent.pull import Wanted
from kernels.errors import ModelError, ResourceError
from weights.directory import ModelDirectory
from weights.manifest import AtomLocation, Manifest, content_hash

__all__ = ["CacheStore", "DirectoryStore", "Puller", "Store", "find_directory"]

log = logging.getLogger(__name__)

U8 = npt.NDArray[np.uint8]
# Pulls objects and hands each, verified, to the second argument.
Puller = Callable[[Sequence[Wanted], Callable[[Wanted, bytearray], None]], None]

SYNC_BYTES = 32 << 20
LOCK_POLL_S = 0.2


class Store(ABC):
    """Weights of one model; a subclass knows how atoms come in.

    Attributes:
        manifest: the model's manifest.
        weights: (weights_bytes,) uint8; only verified atoms may be read.
    """

    def __init__(self, manifest: Manifest, weights: U8, n_threads: int) -> None:
        self.manifest = manifest
        self.weights = weights
        self._n_threads = n_threads
        self._verified: dict[int, AtomLocation] = {}

    @abstractmethod
    def ensure(
        self,
        atoms: Sequence[AtomLocation],
        pull: Puller,
        touched: Callable[[int], None],
        cancelled: Event,
    ) -> int:
        """Make atoms resident and verified.

        Args:
            atoms: what the member needs.
            pull: gets what is not here.
            touched: gets the bytes of each atom that was found here and verified.
            cancelled: ends the work with Cancelled.

        Returns:
            Bytes that were pulled.

        Raises:
            ModelError: an atom is damaged at its source.
            ResourceError: neither disk nor memory can take the atoms.
        """

    @property
    def resident_bytes(self) -> int:
        """Bytes of the atoms that are verified."""
        return sum(a.n_bytes for a in list(self._verified.values()))

    def blob(self, atom: AtomLocation) -> U8:
        """Return one atom's bytes as a view."""
        return self.weights[atom.offset_bytes : atom.offset_bytes + atom.n_bytes]

    def _check_hashes(
        self, atoms: Iterable[AtomLocation], touched: Callable[[int], None], cancelled: Event
    ) -> list[AtomLocation]:
        """Hash atoms, which also brings their pages in, and return those that are damaged."""

        def is_sound(atom: AtomLocation) -> bool:
            if cancelled.is_set():
                raise Cancelled("the assignment was withdrawn")
            return content_hash(self.blob(atom).data) == atom.hash

        unknown = [a for a in atoms if a.offset_bytes not in self._verified]
        damaged = []
        # hashlib lets go of the GIL, so threads hash in parallel.
        with ThreadPoolExecutor(self._n_threads) as executor:
            for atom, sound in zip(unknown, executor.map(is_sound, unknown), strict=True):
                if sound:
                    self._verified[atom.offset_bytes] = atom
                    touched(atom.n_bytes)
                else:
                    damaged.append(atom)
        return damaged


class DirectoryStore(Store):
    """A model directory on this board; nothing is ever pulled."""

    def __init__(self, directory: ModelDirectory, n_threads: int) -> None:
        super().__init__(directory.manifest, directory.weights, n_threads)
        self._path = directory.directory

    def ensure(
        self,
        atoms: Sequence[AtomLocation],
        pull: Puller,
        touched: Callable[[int], None],
        cancelled: Event,
    ) -> int:
        """Verify atoms; see Store."""
        damaged = self._check_hashes(atoms, touched, cancelled)
        if damaged:
            raise ModelError(
                f"{self._path}: {damaged[0]} does not have the hash that its manifest names; "
                f"copy or convert the model again"
            )
        return 0


class CacheStore(Store):
    """Pulled atoms, in the cache or, without a writable disk, in anonymous memory.

    Args:
        manifest: the model's manifest.
        entry: its place in the cache, or None for memory alone.
        memory_bytes: most anonymous memory for weights.
        n_threads: threads that hash.
    """

    def __init__(
        self, manifest: Manifest, entry: CacheEntry | None, memory_bytes: int, n_threads: int
    ) -> None:
        super().__init__(manifest, np.empty(0, np.uint8), n_threads)
        self._entry = entry
        self._memory_bytes = memory_bytes

    @property
    def in_memory(self) -> bool:
        """Whether the atoms live in anonymous memory."""
        return self._entry is None

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
                log.warning("cache %s fails (%s); running from memory", self._entry.directory, e)
                self._leave_cache()
        if not len(self.weights):
            self._allocate(atoms)
        missing = [a for a in atoms if a.offset_bytes not in self._verified]
        return self._pull(missing, pull, self._keep_in_memory)

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
            n_unsynced = 0

            def keep(atom: AtomLocation, data: bytearray) -> None:
                nonlocal n_unsynced
                entry.write(atom, data)
                n_unsynced += len(data)
                if n_unsynced >= SYNC_BYTES:
                    entry.sync()
                    n_unsynced = 0

            try:
                return self._pull(missing, pull, keep)
            finally:
                entry.sync()
        finally:
            entry.unlock()

    def _pull(
        self,
        atoms: Sequence[AtomLocation],
        pull: Puller,
        keep: Callable[[AtomLocation, bytearray], None],
    ) -> int:
        places: dict[str, list[AtomLocation]] = {}
        for atom in atoms:
            places.setdefault(atom.hash, []).append(atom)
        n_bytes = 0

        def take(wanted: Wanted, data: bytearray) -> None:
            nonlocal n_bytes
            n_bytes += len(data)
            for atom in places[wanted.object_id]:
                keep(atom, data)
                self._verified[atom.offset_bytes] = atom

        wanted = [Wanted(name, here[0].n_bytes, str(here[0])) for name, here in places.items()]
        if wanted:
            pull(wanted, take)
        return n_bytes

    def _keep_in_memory(self, atom: AtomLocation, data: bytearray) -> None:
        self.weights[atom.offset_bytes : atom.offset_bytes + atom.n_bytes] = np.frombuffer(
            data, np.uint8
        )

    def _allocate(self, atoms: Sequence[AtomLocation]) -> None:
        """Reserve anonymous memory of the file's size; only atoms that are written take any."""
        n_bytes = sum(a.n_bytes for a in atoms)
        if n_bytes > self._memory_bytes:
            raise ResourceError(
                f"{n_bytes} bytes of weights fit neither the cache's disk nor the "
                f"{self._memory_bytes} bytes of memory offered; free disk space or name another "
                f"place with --cache-dir"
            )
        mapping = mmap.mmap(-1, self.manifest.weights_bytes)
        self.weights = np.frombuffer(mapping, np.uint8)

    def _leave_cache(self) -> None:
        """Go on without the cache: mapped atoms are copied.

        What the journal names stays for the next start, and for other agents that use the entry.
        """
        old, kept = self.weights, self._verified
        self._entry, self.weights, self._verified = None, np.empty(0, np.uint8), {}
        held = list(kept.values())
        if held:
            self._allocate(held)
        for atom in held:
            data = bytearray(old[atom.offset_bytes :][: atom.n_bytes])
            # Hashed again: a disk that fails to sync may have lost what was written.
            if content_hash(memoryview(data)) == atom.hash:
                self._keep_in_memory(atom, data)
                self._verified[atom.offset_bytes] = atom


def _wait_lock(entry: CacheEntry, cancelled: Event) -> None:
    while not entry.try_lock():
        if cancelled.is_set():
            raise Cancelled("the assignment was withdrawn")
        time.sleep(LOCK_POLL_S)


def find_directory(places: Iterable[Path], model_id: ModelId) -> ModelDirectory | None:
    """Return the model directory with that id among `places` and their direct children."""
    for place in places:
        for path in (place, *_children(place)):
            if not (path / "manifest.json").is_file():
                continue
            try:
                directory = ModelDirectory.open(path)
            except ModelError as e:
                log.warning("skipped %s: %s", path, e)
                continue
            if directory.model_id == model_id:
                return directory
            directory.close()
    return None


def _children(place: Path) -> list[Path]:
    try:
        return sorted(Path(e.path) for e in os.scandir(place) if e.is_dir())
    except OSError:
        return []
