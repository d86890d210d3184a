"""What the cache holds, how much disk it takes, and who gives way when it grows too big.

Models are the unit: the one used longest ago goes first, never one that a process has open. Where
that is not enough, the model that grows may give some of its own atoms back.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from agent.files import remove_strays
from agent.ids import ModelId

__all__ = ["Held", "held_models", "make_room", "remove_model"]

_HEX = frozenset("0123456789abcdef")


class Held(NamedTuple):
    """One model in the cache: the disk it takes, when it was last opened, and whether it is now."""

    model_id: ModelId
    directory: Path
    disk_bytes: int
    used_s: float
    in_use: bool


def held_models(root: Path) -> list[Held]:
    """Return the models in the cache, the one used last first."""
    remove_strays(root / "models")
    try:
        names = os.listdir(root / "models")
    except OSError:
        return []
    found = []
    for name in names:
        directory = root / "models" / name
        if len(name) == 32 and set(name) <= _HEX and directory.is_dir():
            disk_bytes = _disk_bytes(directory)
            used = directory / "users"
            found.append(Held(ModelId(name), directory, disk_bytes, _mtime(used), _is_held(used)))
    return sorted(found, key=lambda held: held.used_s, reverse=True)


def make_room(
    root: Path,
    keep: ModelId,
    n_bytes: int,
    limit_bytes: int,
    give_back: Callable[[int], bool] = lambda _: False,
) -> None:
    """Remove the models used longest ago until n_bytes more fit into the cache.

    Args:
        root: the cache directory.
        keep: the model that is to grow; never removed.
        n_bytes: how much it grows.
        limit_bytes: most that the cache may take.
        give_back: asked last, with how much is still too much: takes from `keep` what it can
            spare and says whether it did.

    Raises:
        OSError: EDQUOT, it does not fit although all that may go is gone.
    """
    excess_bytes = _remove_models(root, keep, limit_bytes - n_bytes)
    if excess_bytes > 0 and give_back(excess_bytes):
        excess_bytes = _remove_models(root, keep, limit_bytes - n_bytes)
    if excess_bytes > 0:
        raise OSError(
            errno.EDQUOT, f"{n_bytes} bytes more do not fit the cache limit of {limit_bytes}"
        )


def _remove_models(root: Path, keep: ModelId, target_bytes: int) -> int:
    """Remove models, the one used longest ago first; return what the rest has above the target."""
    models = held_models(root)
    excess_bytes = sum(m.disk_bytes for m in models) - target_bytes
    for model in reversed(models):
        if excess_bytes <= 0:
            break
        if model.model_id != keep and remove_model(model.directory):
            excess_bytes -= model.disk_bytes
    return excess_bytes


def remove_model(directory: Path) -> bool:
    """Remove a model from the cache; False if a process has it open.

    Raises:
        OSError: it is not ours to remove.
    """
    try:
        fd = os.open(directory / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Renamed first: whoever opens the model meanwhile begins a new one.
        aside = directory.with_name(f".{directory.name}.{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
        shutil.rmtree(aside)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _is_held(users: Path) -> bool:
    try:
        fd = os.open(users, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _mtime(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _disk_bytes(directory: Path) -> int:
    """Return the disk that a model takes; sparse files take what was written."""
    total_bytes = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total_bytes += 512 * entry.stat(follow_symlinks=False).st_blocks
    return total_bytes
