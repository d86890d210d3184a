"""numba's cache on disk, shared by processes that compile at the same time."""

import threading
from pathlib import Path
from typing import Any

import pytest
from numba.core.caching import IndexDataCacheFile

import kernels.jit
from kernels.jit import JIT_DISABLED, kernel
from kernels.team import count_up


def opened(path: Path) -> Any:
    """Return the cache of one function as a process of its own has it."""
    file: Any = IndexDataCacheFile(str(path), "function", "stamp")
    kernels.jit._save_one_at_a_time(file)
    return file


@pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")
def test_kernels_are_saved_one_at_a_time() -> None:
    dispatcher: Any = count_up
    assert dispatcher._cache._cache_file.save.__module__ == kernel.__module__


def test_who_saves_last_does_not_take_the_others_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    saving, go_on = threading.Event(), threading.Event()
    save_data = first._save_data

    def slowly(name: str, data: Any) -> None:
        saving.set()
        assert go_on.wait(10)
        save_data(name, data)

    monkeypatch.setattr(first, "_save_data", slowly)
    threads = [threading.Thread(target=first.save, args=("int", "code for int"))]
    threads[0].start()
    assert saving.wait(10)
    threads.append(threading.Thread(target=second.save, args=("float", "code for float")))
    threads[1].start()
    threads[1].join(0.2)  # it waits, or else it is done by now
    go_on.set()
    for thread in threads:
        thread.join()
    third = opened(tmp_path)
    assert (third.load("int"), third.load("float")) == ("code for int", "code for float")


def test_who_cannot_save_in_time_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.jit, "SAVE_TRIES", 3)
    file = opened(tmp_path)
    with kernels.jit._locked(f"{file._index_path}.lock") as is_ours:
        assert is_ours
        file.save("int", "code for int")
    assert file.load("int") is None
    file.save("int", "code for int")
    assert file.load("int") == "code for int"
