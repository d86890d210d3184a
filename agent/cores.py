"""A core of its own for the thread that everybody waits for.

A hot thread and ZeroMQ's I/O thread hand every frame to each other. On one core that costs a
switch; across cores it costs waking a core that sleeps, twice a frame. Which cores are taken is
agreed on among a user's headwise processes by file locks, which end with their holders; who finds
none free leaves the choice to the scheduler.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["claimed_core", "pinned"]


@contextlib.contextmanager
def claimed_core(root: Path | None = None) -> Iterator[int | None]:
    """Hold a core that no other headwise process holds; None if there is none.

    Args:
        root: where the locks lie; default: the user's cache directory.
    """
    with contextlib.ExitStack() as held:
        yield _claim(root or _lock_directory(), held)


def _claim(directory: Path, held: contextlib.ExitStack) -> int | None:
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        return None
    # Without a place for locks nobody claims anything.
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # From the end: a system's interrupts prefer the first ones.
        for core in sorted(cores, reverse=True):
            fd = os.open(directory / str(core), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            held.callback(os.close, fd)
            return core
    return None


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Keep the calling thread, and threads that it starts, on a core; None does nothing."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):  # somebody may have taken the core away meanwhile
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)


def _lock_directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "headwise" / "cores"
