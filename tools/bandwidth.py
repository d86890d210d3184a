"""How fast threads read memory: the limit that decoding is held against, in the same run.

A compiled loop adds up a buffer that no cache holds. Threads take it in chunks, so that one which
the system holds up delays nobody: the result is what these threads can read together.
"""

import logging
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.barrier import LINE, atomic_add
from kernels.errors import InputError
from kernels.jit import JIT_DISABLED, inner, kernel
from kernels.pool import Pool

__all__ = [
    "ReadBuffer",
    "buffer_bytes",
    "check_compiled",
    "last_level_cache_bytes",
    "parse_cache_size_bytes",
]

log = logging.getLogger(__name__)

I64Array = npt.NDArray[np.int64]

CHUNK_BYTES = 1 << 20
# So many times the last-level cache is a buffer's size: what is left of a former pass is noise.
CACHE_MULTIPLE = 8
MIN_BUFFER_BYTES = 64 << 20
# Some boards do not say what caches they have; none of them has more than this.
UNKNOWN_CACHE_BYTES = 32 << 20
MEASURE_S = 0.15
MAX_PASSES = 64

_SIZE = re.compile(r"(\d+)([KMG]?)")


@inner
def _sum_of(words: I64Array) -> int:
    """Return the sum of all words, modulo 2^64; integers, so that LLVM may add them in vectors."""
    total = 0
    for i in range(words.size):
        total += int(words[i])
    return total


@kernel
def read_chunks(
    tid: int,
    n_threads: int,
    sync: I64Array,
    words: I64Array,
    chunk_words: int,
    n_turns: int,
    turn: I64Array,
    sums: I64Array,
) -> None:
    """Read chunks of the buffer, over and over, until n_turns are taken by all threads together."""
    n_chunks = words.size // chunk_words
    while True:
        mine = atomic_add(turn, 0, 1)
        if mine >= n_turns:
            return
        first = (mine % n_chunks) * chunk_words
        # Kept where others can see it, or the loop would be optimised away.
        sums[tid * LINE] += _sum_of(words[first : first + chunk_words])


class ReadBuffer:
    """Memory to read, written once so that it is really there."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = max(1, n_bytes // CHUNK_BYTES) * CHUNK_BYTES
        self._words = np.full(self.n_bytes // 8, 1, np.int64)

    def bytes_per_s(self, pool: Pool) -> float:
        """Return how many bytes a second the threads of a pool read together."""
        once_s = self._read_s(pool, 1)
        n_passes = min(max(1, math.ceil(MEASURE_S / once_s)), MAX_PASSES)
        return n_passes * self.n_bytes / self._read_s(pool, n_passes)

    def read_sum(self, pool: Pool, n_passes: int) -> int:
        """Read the buffer n_passes times and return the sum of its words, each of which is 1."""
        turn, sums = np.zeros(LINE, np.int64), np.zeros(pool.n_threads * LINE, np.int64)
        n_turns = n_passes * (self.n_bytes // CHUNK_BYTES)
        arguments: tuple[Any, ...] = (self._words, CHUNK_BYTES // 8, n_turns, turn, sums)
        pool.run(read_chunks, *arguments)
        return int(sums.sum())

    def _read_s(self, pool: Pool, n_passes: int) -> float:
        started_s = time.perf_counter()
        self.read_sum(pool, n_passes)
        return time.perf_counter() - started_s


def check_compiled() -> None:
    """Refuse to measure kernels that are not compiled.

    Raises:
        InputError: numba is told to leave everything to the interpreter.
    """
    if JIT_DISABLED:
        raise InputError("NUMBA_DISABLE_JIT is set: interpreted kernels say nothing about speed")


def buffer_bytes(cache_bytes: int) -> int:
    """Return how large a buffer must be beside a last-level cache of cache_bytes."""
    return max(MIN_BUFFER_BYTES, CACHE_MULTIPLE * cache_bytes)


def parse_cache_size_bytes(text: str) -> int:
    """Return the bytes of a size as /sys writes it, such as `36608K`; 0 if it is none."""
    match = _SIZE.fullmatch(text.strip())
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else 0


def last_level_cache_bytes(root: Path = Path("/")) -> int:
    """Return the size of the last-level caches of all cores together, each counted once.

    That is L3 where there is one, else L2, as on most boards.

    Args:
        root: of the file system whose /sys is read.
    """
    found: dict[tuple[int, str], int] = {}
    for cache in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        texts = [_read(cache / name) for name in ("level", "type", "size", "shared_cpu_list")]
        level, kind, size, cores = texts
        if level.isdigit() and kind in ("Unified", "Data"):
            # Without a list of sharers a cache belongs to its core.
            key = int(level), cores or cache.parent.parent.name
            found[key] = parse_cache_size_bytes(size)
    last = max((level for (level, _), n_bytes in found.items() if n_bytes), default=0)
    if not last:
        log.warning("the system names no caches; taking the last one for %d", UNKNOWN_CACHE_BYTES)
        return UNKNOWN_CACHE_BYTES
    return sum(n_bytes for (level, _), n_bytes in found.items() if level == last)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
