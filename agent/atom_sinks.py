"""Where pulled atoms are written: into the cache or into anonymous memory.

Chunks are kept as they arrive, so that a pull that is broken off, in this process or a former
one, goes on where it stopped.
"""

from abc import abstractmethod
from collections.abc import Iterable

from agent.anonymous import AnonymousWeights
from agent.cache import CacheEntry
from agent.pull import Chunk, Wanted
from agent.puller import Sink
from weights.manifest import AtomLocation

__all__ = ["AtomSink", "CacheSink", "MemorySink"]

SYNC_BYTES = 32 << 20


class AtomSink(Sink):
    """Puts pulled objects at every place of theirs; counts the bytes that came over the wire.

    Args:
        atoms: what is pulled.
        verified: gets each atom that is whole, by its offset.
    """

    def __init__(self, atoms: Iterable[AtomLocation], verified: dict[int, AtomLocation]) -> None:
        self.places: dict[str, list[AtomLocation]] = {}
        for atom in atoms:
            self.places.setdefault(atom.hash, []).append(atom)
        self.verified = verified
        self.n_bytes = 0

    @property
    def wanted(self) -> list[Wanted]:
        """The objects to pull, each once."""
        return [Wanted(name, at[0].n_bytes, str(at[0])) for name, at in self.places.items()]

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


class CacheSink(AtomSink):
    """Writes to the cache, which is synced now and then."""

    def __init__(
        self, atoms: Iterable[AtomLocation], verified: dict[int, AtomLocation], entry: CacheEntry
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


class MemorySink(AtomSink):
    """Writes to anonymous memory; chunks of unfinished atoms stay for the next pull."""

    def __init__(
        self,
        atoms: Iterable[AtomLocation],
        verified: dict[int, AtomLocation],
        memory: AnonymousWeights,
    ) -> None:
        super().__init__(atoms, verified)
        self._memory = memory

    def resume(self, wanted: Wanted) -> Iterable[tuple[int, bytes]]:
        """Return chunks that a former pull of this process kept."""
        atom = self.places[wanted.object_id][0]
        blob = self._memory.array[atom.offset_bytes :]
        for start, end in self._memory.chunks.get(atom.offset_bytes, ()):
            yield start, blob[start:end].tobytes()

    def write(self, atom: AtomLocation, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes of an atom."""
        self._memory.put(atom, offset, data)
        spans = self._memory.chunks.setdefault(atom.offset_bytes, [])
        spans.append((offset, offset + len(data)))

    def finish(self, atom: AtomLocation) -> None:
        """Note that an atom is whole."""
        self._memory.chunks.pop(atom.offset_bytes, None)
