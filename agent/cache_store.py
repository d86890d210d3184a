"""Atoms that were pulled: in the cache or, without a writable disk, in anonymous memory."""

import errno
import logging
from collections.abc import Callable, Sequence
from threading import Event

import numpy as np
import numpy.typing as npt

from agent.anonymous import AnonymousWeights
from agent.atom_sinks import AtomSink, CacheSink, MemorySink
from agent.cache import CacheEntry
from agent.cache_room import make_room
from agent.files import is_disk_trouble
from agent.leases import n_bytes_of
from agent.puller import Cancelled
from agent.store import Puller, Store
from kernels.errors import ResourceError
from weights.manifest import AtomLocation, Manifest, content_hash

__all__ = ["CacheStore"]

log = logging.getLogger(__name__)

LOCK_POLL_S = 0.2

# An atom and its bytes.
_Blob = tuple[AtomLocation, npt.NDArray[np.uint8]]


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
        self._memory: AnonymousWeights | None = None

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
        saved: list[_Blob] = []
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
                saved = self._leave_cache(atoms)
        memory = self._fit_memory(atoms, cancelled)
        self._copy(saved, memory)
        missing = [a for a in atoms if a.offset_bytes not in self._verified]
        return _pull(pull, MemorySink(missing, self._verified, memory))

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
                self.weights, self._verified, self._ahead = weights, {}, {}
            present = entry.present(atoms)
            known = [a for a in atoms if a.offset_bytes in present]
            damaged = self._check_hashes(known, touched, cancelled)
            if damaged:
                log.warning("cache %s: %d damaged atoms", entry.directory, len(damaged))
                entry.forget(damaged)
            missing = [a for a in atoms if a.offset_bytes not in self._verified]
            if missing and self._limit_bytes is not None:
                self._make_room(entry, atoms, self._limit_bytes, cancelled)
            try:
                return _pull(pull, CacheSink(missing, self._verified, entry))
            finally:
                entry.sync()
        finally:
            entry.unlock()

    def _make_room(
        self, entry: CacheEntry, atoms: Sequence[AtomLocation], limit_bytes: int, cancelled: Event
    ) -> None:
        """Make the missing ones of `atoms` fit into the cache.

        Raises:
            OSError: EDQUOT, they do not.
        """
        missing = [a for a in atoms if a.offset_bytes not in self._verified]
        # Chunks that a broken pull left are on the disk already.
        n_bytes = n_bytes_of(missing) - entry.noted_bytes(missing)

        def give_back(excess_bytes: int) -> bool:
            most_bytes = entry.weights_disk_bytes + n_bytes - excess_bytes
            return self._drop_others(entry, atoms, most_bytes, cancelled)

        make_room(entry.root, entry.model_id, n_bytes, limit_bytes, give_back)

    def _drop_others(
        self, entry: CacheEntry, atoms: Sequence[AtomLocation], most_bytes: int, cancelled: Event
    ) -> bool:
        """Give back atoms that neither the assignment nor a living member names.

        Not if `atoms`, with those in use, have more than `most_bytes` all the same.
        """
        wanted = {a.offset_bytes: a for a in atoms}

        def fits() -> bool:
            return n_bytes_of((self.leases.atoms | wanted).values()) <= most_bytes

        if n_bytes_of(atoms) > most_bytes or not self.leases.wait(fits, cancelled):
            return False
        # Damaged atoms have nothing that is worth its disk.
        here = {at: a for at, a in wanted.items() if at in self._verified or entry.noted_bytes([a])}
        kept = self.leases.atoms | here
        try:
            dropped = entry.keep_only(kept.values())
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            log.warning(
                "cache %s: atoms of former plans stay, its filesystem gives no part of a file back",
                entry.directory,
            )
            return False
        if not dropped:
            log.warning(
                "cache %s: atoms of former plans stay, somebody else has the model mapped",
                entry.directory,
            )
            return False
        log.info("cache %s: atoms of former plans are dropped", entry.directory)
        self._verified = {at: a for at, a in self._verified.items() if at in kept}
        self._ahead = {at: a for at, a in self._ahead.items() if at in kept}
        return True

    def _leave_cache(self, atoms: Sequence[AtomLocation]) -> list[_Blob]:
        """Go on without the cache; return those of `atoms` that are mapped from it.

        What the journal names stays for the next start, and for other agents that use the entry.
        """
        saved = [(a, self.blob(a)) for a in atoms if a.offset_bytes in self._verified]
        self.close()
        self._entry, self.weights, self._verified = None, np.empty(0, np.uint8), {}
        self._ahead = {}
        return saved

    def _here(self) -> Sequence[AtomLocation] | None:
        """Return what the journal names; who writes it just now is not waited for."""
        entry = self._entry
        if entry is None or not len(self.weights):
            return []  # what is in memory was hashed when it came
        try:
            if not entry.try_lock():
                return None
            try:
                if entry.map_weights(self.manifest.weights_bytes) is not self.weights:
                    return []  # the file was replaced; the next plan maps the new one
                atoms = self._all_atoms()
                present = entry.present(atoms)
            finally:
                entry.unlock()
        except OSError:
            return []  # the next plan finds out what is wrong with the disk
        return [atom for atom in atoms if atom.offset_bytes in present]

    def _fit_memory(self, atoms: Sequence[AtomLocation], cancelled: Event) -> AnonymousWeights:
        """Give back what nobody needs any more, and reserve memory for `atoms`.

        Raises:
            ResourceError: they do not fit beside the atoms that living members use.
        """
        wanted = {a.offset_bytes: a for a in atoms}

        def to_hold() -> dict[int, AtomLocation]:
            in_use = self.leases.atoms
            return {at: a for at, a in self._verified.items() if at in in_use} | wanted

        def fits() -> bool:
            return n_bytes_of(to_hold().values()) <= self._memory_bytes

        if n_bytes_of(atoms) > self._memory_bytes or not self.leases.wait(fits, cancelled):
            raise self._too_much(n_bytes_of(atoms), n_bytes_of(to_hold().values()))
        if self._memory is None:
            # As large as the file; only atoms that are written take any.
            self._memory = AnonymousWeights(self.manifest.weights_bytes)
            self.weights = self._memory.array
        kept = to_hold()
        self._verified = {at: a for at, a in self._verified.items() if at in kept}
        self._memory.keep_only(kept.values())
        return self._memory

    def _too_much(self, wanted_bytes: int, total_bytes: int) -> ResourceError:
        others_bytes = total_bytes - wanted_bytes
        beside = f", beside {others_bytes} of a plan that was not released," if others_bytes else ""
        return ResourceError(
            f"{wanted_bytes} bytes of weights{beside} fit neither the cache's disk nor the "
            f"{self._memory_bytes} bytes of memory offered; free disk space, raise "
            f"--cache-limit or name another place with --cache-dir"
        )

    def _copy(self, saved: Sequence[_Blob], memory: AnonymousWeights) -> None:
        """Take over atoms that were mapped from the cache, if they are still sound."""
        for atom, blob in saved:
            data = bytearray(blob)
            # Hashed again: a disk that fails to sync may have lost what was written.
            if content_hash(memoryview(data)) == atom.hash:
                memory.put(atom, 0, data)
                self._verified[atom.offset_bytes] = atom


def _pull(pull: Puller, sink: AtomSink) -> int:
    if wanted := sink.wanted:
        pull(wanted, sink)
    return sink.n_bytes


def _wait_lock(entry: CacheEntry, cancelled: Event) -> None:
    while not entry.try_lock():
        if cancelled.wait(LOCK_POLL_S):
            raise Cancelled("the assignment was withdrawn")
