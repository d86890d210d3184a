"""The journal of a cache entry: which atoms of its weights.bin are whole and synced.

32-byte records, each with its checksum, in the order in which the atoms came; a torn or foreign
tail is cut off. Does not know weights.bin.
"""

import errno
import os
import struct
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path

from agent.files import write_file
from weights.manifest import AtomLocation

__all__ = ["JOURNAL_NAME", "append_journal", "keep_in_journal", "read_journal"]

JOURNAL_NAME = "journal"
# Two million atoms; larger models have other troubles.
MAX_JOURNAL_BYTES = 64 << 20

_RECORD = struct.Struct("<QI16sI")


def read_journal(directory: Path) -> dict[int, str]:
    """Return the hash of each atom that an entry's journal names, by its offset in bytes."""
    try:
        with (directory / JOURNAL_NAME).open("rb") as file:
            return dict(_parse(file.read(MAX_JOURNAL_BYTES)))
    except OSError:
        return {}


def append_journal(directory: Path, atoms: Iterable[AtomLocation]) -> None:
    """Name more atoms, and sync.

    Raises:
        OSError: the disk is full or fails.
    """
    path = directory / JOURNAL_NAME
    records = b"".join(_pack(a.offset_bytes, a.n_bytes, a.hash) for a in atoms)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = _RECORD.size * len(_parse(os.pread(fd, os.fstat(fd).st_size, 0)))
        os.ftruncate(fd, end)
        if os.pwrite(fd, records, end) != len(records):
            raise OSError(errno.ENOSPC, f"{path} cannot grow")
        os.fsync(fd)
    finally:
        os.close(fd)


def keep_in_journal(directory: Path, offsets: Collection[int]) -> None:
    """Take out all atoms but those at some offsets, at once or not at all.

    Raises:
        OSError: the disk is full or fails.
    """
    kept = [(at, name) for at, name in read_journal(directory).items() if at in offsets]
    write_file(directory / JOURNAL_NAME, b"".join(_pack(at, 0, name) for at, name in kept))


def _parse(journal: bytes) -> list[tuple[int, str]]:
    """Return offset and hash of each record up to the first that is torn."""
    records = []
    for at in range(0, len(journal) - _RECORD.size + 1, _RECORD.size):
        offset, _, name, crc = _RECORD.unpack_from(journal, at)
        if zlib.crc32(journal[at : at + _RECORD.size - 4]) != crc:
            break
        records.append((offset, name.hex()))
    return records


def _pack(offset_bytes: int, n_bytes: int, name: str) -> bytes:
    body = _RECORD.pack(offset_bytes, n_bytes, bytes.fromhex(name), 0)[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")
