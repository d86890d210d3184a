"""Arrays in, arrays out: the arithmetic of a decoder-only model for one member of a plan.

Knows weights in canonical tiles, activations, KV pages and worker threads. Does not know
models, files or sockets. Shapes use the glossary of docs/architecture.md: D hidden size, H query
heads, G KV heads, d head dimension, F MLP columns, L layers, V vocabulary, T tokens in context.

Importing this package only chooses where numba keeps compiled kernels; numba itself is imported
by the kernel modules.
"""

import hashlib
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

__all__ = ["cache_key", "kept_cache_directory"]

# Files of other rooms that have compiled functions, or constants that these contain.
_COMPILED_ELSEWHERE = (
    "agent/frames.py", "agent/native.py", "agent/phase_loop.py", "agent/serve_phases.py",
    "agent/serve_tokens.py", "agent/zmq_calls.py", "coordinator/walk_phases.py",
    "tools/bandwidth.py",
)  # fmt: skip


def cache_key() -> str:
    """Return a key that changes with every kernel source, numba version and forced target.

    Numba does not notice edits of a callee in another module, nor our own choice of instructions
    (`target`), so the directory has to.
    """
    key = hashlib.blake2b(version("numba").encode(), digest_size=8)
    key.update(os.environ.get("HEADWISE_SIMD", "").encode() + b"\0")
    here = Path(__file__).parent
    elsewhere = [here.parent / name for name in _COMPILED_ELSEWHERE]
    for source in [*sorted(here.glob("*.py")), *(path for path in elsewhere if path.exists())]:
        key.update(source.name.encode() + b"\0" + source.read_bytes())
    return key.hexdigest()


def _private_directory(path: Path) -> bool:
    """Create `path` if need be and tell whether only we can write into it.

    Cached kernels are pickles: a directory that others can write to would let them run code.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.stat()
    except OSError:
        return False
    private = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return private and os.access(path, os.W_OK)


def _choose_cache_directory() -> str:
    """Return a directory for compiled kernels that this user alone can write."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    in_home = Path(base) / "headwise" / "numba" / cache_key()
    if _private_directory(in_home):
        return str(in_home)
    in_temp = Path(tempfile.gettempdir()) / f"headwise-{os.getuid()}" / cache_key()
    if _private_directory(in_temp.parent) and _private_directory(in_temp):
        return str(in_temp)
    return tempfile.mkdtemp(prefix="headwise-")


def kept_cache_directory() -> Path | None:
    """Return where compiled kernels are kept for the next process; None if they are not."""
    path = Path(os.environ["NUMBA_CACHE_DIR"])
    passing = path.parent == Path(tempfile.gettempdir()) and path.name.startswith("headwise-")
    return None if passing or not _private_directory(path) else path


if not os.environ.get("NUMBA_CACHE_DIR"):
    os.environ["NUMBA_CACHE_DIR"] = _choose_cache_directory()
