"""Adding up smaps."""

import os
import threading
from pathlib import Path

import pytest

import tools.resident
from tools.resident import cpu_s, parse_smaps, read_resident

SMAPS = """\
55d0c8a00000-55d0c8a21000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
Rss:                  16 kB
Pss:                   8 kB
7f0000000000-7f0000100000 r--s 00000000 08:01 42   {weights}
Rss:                1024 kB
7f0000200000-7f0000201000 r-xp 00001000 08:01 43   /usr/lib/libc.so.6
Rss:                   4 kB
7f0000201000-7f0000202000 rw-p 00002000 08:01 43   /usr/lib/libc.so.6 (deleted)
Rss:                   4 kB
7f0000300000-7f0000400000 rw-p 00000000 00:00 0
Rss:                 512 kB
VmFlags: rd wr mr mw me ac
"""


def test_smaps_are_added_up_by_name() -> None:
    found = parse_smaps(SMAPS.format(weights="/m o/weights.bin"))
    assert found == {
        "[heap]": 16384, "/m o/weights.bin": 1 << 20, "/usr/lib/libc.so.6": 8192,
        "anonymous memory": 512 << 10,
    }  # fmt: skip


def test_weights_and_kv_pool_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tools.resident.Path, "read_text", lambda _: SMAPS.format(weights=tmp_path / "weights.bin")
    )
    found = read_resident(1, [tmp_path], 100_000)
    assert found.total_bytes == (16 + 1024 + 8 + 512) * 1024
    assert found.weights_bytes == 1 << 20
    assert found.own_bytes == (16 + 8 + 512) * 1024 - 100_000
    assert str(tmp_path / "weights.bin") not in found.by_name
    # A directory beside the weights' own is no weight.
    assert read_resident(1, [tmp_path / "w"], 0).weights_bytes == 0


def test_threads_that_end_meanwhile_do_not_matter() -> None:
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            one = threading.Thread(target=lambda: None)
            one.start()
            one.join()

    threads = threading.Thread(target=come_and_go)
    threads.start()
    try:
        assert all(cpu_s(os.getpid()) > 0 for _ in range(500))
    finally:
        stop.set()
        threads.join()


def test_cpu_time_grows_with_work() -> None:
    started_s = cpu_s(os.getpid())
    while cpu_s(os.getpid()) - started_s < 0.01:
        pass
