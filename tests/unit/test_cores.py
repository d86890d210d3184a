import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.cores import claimed_core, pinned

needs_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="this process may use one core only"
)


@needs_cores
def test_every_core_is_claimed_once_and_then_none(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        claimed = [stack.enter_context(claimed_core(tmp_path)) for _ in cores]
        assert sorted(claimed) == sorted(cores)  # type: ignore[type-var]
        with claimed_core(tmp_path) as one_more:
            assert one_more is None
    with claimed_core(tmp_path) as again:
        assert again in cores


@needs_cores
def test_the_core_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from agent.cores import claimed_core\n"
        "with claimed_core(Path(sys.argv[1])) as core:\n"
        "    print(core, flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        theirs = int(holder.stdout.readline())
        with claimed_core(tmp_path) as ours:
            assert ours is not None
            assert ours != theirs
        holder.kill()
        holder.wait(20)
    with claimed_core(tmp_path) as ours:
        assert ours == theirs


def test_without_a_place_for_locks_nothing_is_claimed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with claimed_core(tmp_path / "file" / "cores") as core:
        assert core is None


@needs_cores
def test_pinning_holds_for_the_thread_and_what_it_starts_and_ends() -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    seen: list[set[int]] = []
    with pinned(core):
        assert os.sched_getaffinity(0) == {core}
        thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
    assert seen == [{core}]
    assert os.sched_getaffinity(0) == before
    with pinned(None):
        assert os.sched_getaffinity(0) == before
    with pinned(100_000):  # a core that is not there
        assert os.sched_getaffinity(0) == before
