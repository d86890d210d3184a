"""What caches a machine says it has, and that reading a buffer reads all of it."""

from pathlib import Path

import pytest

from kernels.jit import JIT_DISABLED
from kernels.pool import Pool
from tools.bandwidth import (
    CHUNK_BYTES,
    UNKNOWN_CACHE_BYTES,
    ReadBuffer,
    buffer_bytes,
    last_level_cache_bytes,
    parse_cache_size_bytes,
)

Cache = tuple[str, str, str, str]  # level, type, size, shared_cpu_list

L1: Cache = ("1", "Data", "32K", "0")
L1_CODE: Cache = ("1", "Instruction", "64K", "0")


def write_caches(root: Path, cpus: dict[int, list[Cache]]) -> None:
    for cpu, caches in cpus.items():
        for i, texts in enumerate(caches):
            place = root / f"sys/devices/system/cpu/cpu{cpu}/cache/index{i}"
            place.mkdir(parents=True)
            names = ("level", "type", "size", "shared_cpu_list")
            for name, text in zip(names, texts, strict=True):
                (place / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("36608K\n", 36608 << 10), ("32M", 32 << 20), ("1G", 1 << 30), ("512", 512),
     ("", 0), ("K", 0), ("-1K", 0), ("lots", 0), ("1.5M", 0)],
)  # fmt: skip
def test_sizes_are_read_as_the_system_writes_them(text: str, n_bytes: int) -> None:
    assert parse_cache_size_bytes(text) == n_bytes


def test_a_cache_that_cores_share_counts_once(tmp_path: Path) -> None:
    caches = [L1, L1_CODE, ("2", "Unified", "1024K", "0"), ("3", "Unified", "36608K", "0-3")]
    write_caches(tmp_path, dict.fromkeys(range(4), caches))
    assert last_level_cache_bytes(tmp_path) == 36608 << 10


def test_caches_of_several_core_groups_add_up(tmp_path: Path) -> None:
    lists = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}
    write_caches(tmp_path, {i: [L1, ("3", "Unified", "16M", cpus)] for i, cpus in lists.items()})
    assert last_level_cache_bytes(tmp_path) == 32 << 20


def test_a_board_without_l3_ends_at_l2(tmp_path: Path) -> None:
    caches = [L1_CODE, L1, ("2", "Unified", "1M", "0-3"), ("3", "Unified", "", "0-3")]
    write_caches(tmp_path, dict.fromkeys(range(4), caches))
    assert last_level_cache_bytes(tmp_path) == 1 << 20


def test_a_system_that_names_no_caches_gets_a_large_one(tmp_path: Path) -> None:
    assert last_level_cache_bytes(tmp_path) == UNKNOWN_CACHE_BYTES
    write_caches(tmp_path, {0: [("", "", "", ""), ("x", "Unified", "8M", "0")]})
    assert last_level_cache_bytes(tmp_path) == UNKNOWN_CACHE_BYTES


def test_a_buffer_is_much_larger_than_the_cache() -> None:
    assert buffer_bytes(36608 << 10) == 8 * (36608 << 10)
    assert buffer_bytes(1 << 20) == 64 << 20


@pytest.mark.parametrize("n_threads", [1] if JIT_DISABLED else [1, 3])
def test_threads_read_every_word_of_every_pass(n_threads: int) -> None:
    pool = Pool(n_threads)
    try:
        # A multiple of whole chunks is read, each word of it a 1.
        buffer = ReadBuffer(3 * CHUNK_BYTES + 100)
        assert buffer.n_bytes == 3 * CHUNK_BYTES
        assert buffer.read_sum(pool, 1) == 3 * CHUNK_BYTES // 8
        assert buffer.read_sum(pool, 4) == 4 * 3 * CHUNK_BYTES // 8
    finally:
        pool.close()
