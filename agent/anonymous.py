"""Weights in anonymous memory, for a board without a usable disk.

The mapping is as large as the model's own weights.bin and laid out like it, so that kernels see no
difference; only pages that are written take memory, and they can be given back.
"""

import mmap
from collections.abc import Iterable

import numpy as np

from agent.holes import gaps
from weights.manifest import AtomLocation

__all__ = ["AnonymousWeights"]


class AnonymousWeights:
    """Atoms of one model in memory; those that are not whole have notes of their chunks.

    Args:
        n_bytes: size of the model's weights.bin.

    Attributes:
        array: (n_bytes,) uint8, zeros where nothing was written.
        chunks: (start, end) of what is here of each unfinished atom, by the atom's offset.
    """

    def __init__(self, n_bytes: int) -> None:
        self._mapping = mmap.mmap(-1, n_bytes)
        self.array = np.frombuffer(self._mapping, np.uint8)
        self.chunks: dict[int, list[tuple[int, int]]] = {}

    def put(self, atom: AtomLocation, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes of an atom to its place."""
        at = atom.offset_bytes + offset
        self.array[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def keep_only(self, atoms: Iterable[AtomLocation]) -> None:
        """Forget all other atoms and give their memory back, in whole pages."""
        kept = {atom.offset_bytes: atom for atom in atoms}
        self.chunks = {at: spans for at, spans in self.chunks.items() if at in kept}
        for start, end in gaps(kept.values(), len(self.array)):
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            n_bytes = end // mmap.PAGESIZE * mmap.PAGESIZE - first
            if n_bytes > 0:
                # Not DONTNEED: Python's anonymous mappings are shared ones, whose pages that
                # would only unmap.
                self._mapping.madvise(mmap.MADV_REMOVE, first, n_bytes)
