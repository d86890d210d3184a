"""Which chunks of unfinished atoms are in weights.bin already, so that a broken pull goes on.

A file of 24-byte records beside the cache's journal, appended as chunks are written and emptied
of atoms once the journal names them. It is never synced: after a power cut a chunk may be gone
although its record is there, so each record carries the chunk's crc32 and whoever resumes checks
it. Does not know weights.bin.
"""

import os
import struct
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["ChunkLog", "ChunkRecord"]

_RECORD = struct.Struct("<QIIII")
# A log is emptied every time atoms are synced; a longer one is none of ours.
_MAX_BYTES = 4 << 20


class ChunkRecord(NamedTuple):
    """A chunk of the atom at `atom_offset`: where in the atom, how long, and its checksum."""

    atom_offset: int
    start: int
    n_bytes: int
    crc32: int


class ChunkLog:
    """The log of one cache entry, open for its one writer.

    Args:
        path: the file; made if it is not there.

    Raises:
        OSError: it cannot be made or read.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        records = _parse(os.pread(self._fd, _MAX_BYTES, 0))
        self._by_atom: dict[int, list[ChunkRecord]] = {}
        for record in records:
            self._by_atom.setdefault(record.atom_offset, []).append(record)
        self._end_bytes = len(records) * _RECORD.size
        os.ftruncate(self._fd, self._end_bytes)

    def chunks(self, atom_offset: int) -> list[ChunkRecord]:
        """Return the chunks noted for an atom, in the order they came."""
        return list(self._by_atom.get(atom_offset, ()))

    def covered_bytes(self, atom_offset: int, atom_bytes: int) -> int:
        """Return how many bytes of an atom its chunks cover; none is counted twice."""
        total_bytes = end = 0
        for record in sorted(self.chunks(atom_offset), key=lambda record: record.start):
            stop = min(record.start + record.n_bytes, atom_bytes)
            total_bytes += max(0, stop - max(record.start, end))
            end = max(end, stop)
        return total_bytes

    def add(self, record: ChunkRecord) -> None:
        """Note a chunk that was written.

        Raises:
            OSError: the disk is full or fails.
        """
        self._append(_pack(record))
        self._by_atom.setdefault(record.atom_offset, []).append(record)

    def forget(self, atom_offsets: Iterable[int]) -> None:
        """Drop atoms that need no log any more: they are in the journal, or damaged."""
        for offset in atom_offsets:
            self._by_atom.pop(offset, None)
        rest = b"".join(_pack(r) for records in self._by_atom.values() for r in records)
        os.ftruncate(self._fd, 0)
        self._end_bytes = 0
        self._append(rest)

    def keep_only(self, atom_offsets: Collection[int]) -> None:
        """Drop all other atoms."""
        self.forget([offset for offset in self._by_atom if offset not in atom_offsets])

    def forget_all(self) -> None:
        """Drop all atoms: weights.bin is another file now."""
        self.keep_only(())

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            n_written = os.pwrite(self._fd, view, self._end_bytes)
            view, self._end_bytes = view[n_written:], self._end_bytes + n_written


def _pack(record: ChunkRecord) -> bytes:
    body = _RECORD.pack(*record, 0)[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def _parse(log: bytes) -> list[ChunkRecord]:
    """Return the records up to the first that is torn."""
    records = []
    for at in range(0, len(log) - _RECORD.size + 1, _RECORD.size):
        *fields, crc32 = _RECORD.unpack_from(log, at)
        if zlib.crc32(log[at : at + _RECORD.size - 4]) != crc32:
            break
        records.append(ChunkRecord(*fields))
    return records
