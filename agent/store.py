"""The weights of one model on this board: mapped, verified, and pulled where they are missing.

Three places look alike from outside, a uint8 array with every atom at the offset of the model's
own weights.bin: a model directory given by the user, the cache, and, if the disk is full or
read-only, anonymous memory (`cache_store` has the last two). Mapped once per model and kept when
plans come and go.
"""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import numpy.typing as npt

from agent.ids import ModelId
from agent.leases import Leases, n_bytes_of
from agent.pull import Wanted
from agent.puller import Cancelled, Sink
from kernels.errors import ModelError
from weights.directory import ModelDirectory
from weights.manifest import AtomLocation, Manifest, content_hash

__all__ = ["DirectoryStore", "Puller", "Store", "find_directory"]

log = logging.getLogger(__name__)

U8 = npt.NDArray[np.uint8]
# Pulls objects into a sink.
Puller = Callable[[Sequence[Wanted], Sink], None]


class Store(ABC):
    """Weights of one model; a subclass knows how atoms come in.

    Attributes:
        manifest: the model's manifest.
        weights: (weights_bytes,) uint8; only verified atoms may be read.
        leases: which atoms are in use; `ensure` takes other ones away if room is short.
    """

    def __init__(self, manifest: Manifest, weights: U8, n_threads: int) -> None:
        self.manifest = manifest
        self.weights = weights
        self._n_threads = n_threads
        self._verified: dict[int, AtomLocation] = {}
        # Verified before a plan has named them; no less sound, but nobody's yet.
        self._ahead: dict[int, AtomLocation] = {}
        self._doubtful: set[int] = set()
        self.leases = Leases()

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

    def unverified(self, memory_bytes: int) -> list[AtomLocation] | None:
        """Return atoms that are here but were never hashed, as many as may be in memory.

        Args:
            memory_bytes: what weights and KV may take altogether.

        Returns:
            None if that cannot be told now.
        """
        here = self._here()
        if here is None:
            return None
        known = self._verified.keys() | self._ahead.keys() | self._doubtful
        room_bytes = memory_bytes - self.leases.kv_bytes
        room_bytes -= n_bytes_of((self._verified | self._ahead).values())
        found = []
        for atom in here:
            if atom.offset_bytes in known or atom.n_bytes > room_bytes:
                continue
            room_bytes -= atom.n_bytes
            found.append(atom)
        return found

    def take_ahead(self, sound: Iterable[AtomLocation], damaged: Iterable[AtomLocation]) -> None:
        """Note that atoms of `unverified` were hashed before a plan has named them."""
        self._ahead |= {atom.offset_bytes: atom for atom in sound}
        # Whoever needs one hashes it again, and says what is to be done.
        self._doubtful |= {atom.offset_bytes for atom in damaged}

    @abstractmethod
    def _here(self) -> Sequence[AtomLocation] | None:
        """Return the atoms that a member may need and that need not be pulled; None = not now."""

    def _all_atoms(self) -> list[AtomLocation]:
        """Return every atom that a member may need, in file order."""
        found = [
            self.manifest.atom(section.kind, section.layer, i)
            for section in self.manifest.sections
            if section.kind != "embedding"  # the coordinator's
            for i in range(len(section.hashes))
        ]
        return sorted(found, key=lambda atom: atom.offset_bytes)

    # Only a place in the cache is held.
    def close(self) -> None:  # noqa: B027
        """Let go of what keeps the model from being removed; mapped atoms stay valid."""

    @property
    def resident_bytes(self) -> int:
        """Bytes of the atoms that are verified."""
        return sum(a.n_bytes for a in list(self._verified.values()))

    @property
    def in_memory(self) -> bool:
        """Whether the atoms live in anonymous memory, not in a mapped file."""
        return False

    def blob(self, atom: AtomLocation) -> U8:
        """Return one atom's bytes as a view."""
        return self.weights[atom.offset_bytes : atom.offset_bytes + atom.n_bytes]

    def _check_hashes(
        self, atoms: Iterable[AtomLocation], touched: Callable[[int], None], cancelled: Event
    ) -> list[AtomLocation]:
        """Hash atoms, which also brings their pages in, and return those that are damaged.

        Those that were hashed ahead are as good as hashed now.
        """

        def is_sound(atom: AtomLocation) -> bool:
            if cancelled.is_set():
                raise Cancelled("the assignment was withdrawn")
            return content_hash(self.blob(atom).data) == atom.hash

        unknown = []
        for atom in atoms:
            if atom.offset_bytes in self._verified:
                continue
            if self._ahead.pop(atom.offset_bytes, None) is None:
                unknown.append(atom)
                continue
            self._verified[atom.offset_bytes] = atom
            touched(atom.n_bytes)
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

    def _here(self) -> Sequence[AtomLocation] | None:
        return self._all_atoms()


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
