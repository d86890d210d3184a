"""Where an agent's kernels come from: images in its cache, compiled by a child process.

numba and LLVM take some 100 MB of memory, and stay; so a process of their own compiles what is
missing (`compile_server`) and ends. Where that cannot be, agents compile for themselves.
"""

import contextlib
import hashlib
import logging
import os
import platform
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.compile_server import Answer, Request
from agent.resources import MACHINES
from kernels import cache_key, kept_cache_directory
from kernels.entry import images_in_use, use_images
from kernels.errors import ResourceError
from kernels.image import Images
from kernels.mode import BOUNDS_CHECKED, JIT_DISABLED

__all__ = ["IMAGES_VARIABLE", "compiling", "cpu_identity", "open_images"]

log = logging.getLogger(__name__)

# Set to 0 to have numba compile in the agent's own process.
IMAGES_VARIABLE = "HEADWISE_IMAGES"
# The longest kernel takes some ten seconds on a fast machine, and minutes on a board that swaps.
COMPILE_TIMEOUT_S = 600.0
# How long the compiling process may take to end when nobody needs it any more.
END_TIMEOUT_S = 5.0
# What else decides how numba compiles.
_NUMBA_VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT")
# Lines of /proc/cpuinfo that say which processor it is and what it can do.
_CPU_FIELDS = {
    "vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer",
    "CPU architecture", "CPU variant", "CPU part", "Features",
}  # fmt: skip
_ROOT = Path(__file__).resolve().parent.parent
# Of the sources that this process runs: they may be replaced on disk under a running agent.
_KEY_AT_START = cache_key()


def open_images() -> Images | None:
    """Return this machine's images; None if kernels shall be compiled in this process."""
    if JIT_DISABLED or BOUNDS_CHECKED or os.environ.get(IMAGES_VARIABLE) == "0":
        return None
    cache = kept_cache_directory()
    if cache is None or platform.machine() not in MACHINES:
        return None
    directory = cache / f"images-{_key()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as e:
        log.warning("no images of kernels in %s: %s", directory, e)
        return None
    return Images(directory)


def cpu_identity(cpuinfo: str) -> str:
    """Return what tells a machine's processors from others, given the text of /proc/cpuinfo."""
    lines = {line for line in cpuinfo.splitlines() if line.split(":")[0].strip() in _CPU_FIELDS}
    return "\n".join(sorted(lines))


def _key() -> str:
    """Return a key that changes with sources, processor and whatever steers the compiler."""
    try:
        cpu = cpu_identity(Path("/proc/cpuinfo").read_text(errors="replace"))
    except OSError:
        cpu = ""
    steering = [f"{name}={os.environ.get(name)}" for name in _NUMBA_VARIABLES]
    text = "\0".join([cache_key(), platform.machine(), cpu, *steering])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Have images that are missing compiled by a child process, which ends with the context."""
    images = images_in_use()
    if images is None:
        yield
        return
    child = _Child()
    images.compile = child.compile
    try:
        yield
    finally:
        images.compile = None
        child.close()


class _Child:
    """The compiling process, started when something is missing."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # threads of a pool may miss the same kernel
        self._overdue: ResourceError | None = None

    def compile(self, module: str, name: str, kinds: str, path: Path) -> bool:
        """Make an image; False if that is not possible.

        Raises:
            ResourceError: there is no answer in COMPILE_TIMEOUT_S, or the sources are others now.
        """
        with self._lock:
            if path.exists():
                return True  # another thread was first
            if self._overdue is not None:
                raise self._overdue  # it would take as long again
            if cache_key() != _KEY_AT_START:
                raise ResourceError(
                    f"headwise's files have changed since this process started, and kernel {name} "
                    "is not compiled yet: what they make now does not fit; start it again"
                )
            try:
                error = self._ask(Request(module, name, kinds, str(path)))
            except (OSError, msgspec.DecodeError) as e:
                error = f"the compiling process cannot be used: {e!r}"
                use_images(None)
        if error:
            log.warning("no image of kernel %s: %s; numba compiles in this process", name, error)
        return not error

    def _ask(self, request: Request) -> str:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.flush()
        line = self._read_line(process, request.name)
        if not line.endswith(b"\n"):
            raise OSError(f"it ended with code {self._end(END_TIMEOUT_S)}")
        return msgspec.json.decode(line, type=Answer).error

    def _read_line(self, process: "subprocess.Popen[bytes]", name: str) -> bytes:
        """Return the process's answer; what there is of it if the process ends before."""
        assert process.stdout is not None
        deadline_s = time.monotonic() + COMPILE_TIMEOUT_S
        poll, line = select.poll(), b""
        poll.register(process.stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            left_s = max(0.0, deadline_s - time.monotonic())
            if not poll.poll(1000 * left_s):
                self._end()
                self._overdue = ResourceError(
                    f"the compiling process has not answered for {COMPILE_TIMEOUT_S:g} s about "
                    f"kernel {name} and was ended; even slow boards take minutes at most: is there "
                    f"memory left for it (some 270 MB)? `headwise agent --warm` compiles before "
                    f"a model takes it"
                )
                raise self._overdue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                break
            line += data
        return line

    @staticmethod
    def _start() -> "subprocess.Popen[bytes]":
        path = os.pathsep.join(p for p in (str(_ROOT), os.environ.get("PYTHONPATH", "")) if p)
        return subprocess.Popen(
            [sys.executable, "-m", "agent.compile_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            # Ctrl-C at the terminal is for the agent.
            start_new_session=True,
        )

    def _end(self, patience_s: float = 0.0) -> int | None:
        """End the process, by force after `patience_s`; return its code."""
        process, self._process = self._process, None
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            return process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(END_TIMEOUT_S)
        return None

    def close(self) -> None:
        """End the process; it does so itself when its stdin ends."""
        self._end(END_TIMEOUT_S)
