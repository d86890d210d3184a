"""The parent's side of a peer of `tools.bench_peers`: start it, give it a model, time repeats."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from kernels.errors import HeadwiseError, InputError
from tools.bench_rows import Case
from tools.peer_child import Request, Shape, Task
from tools.peer_rows import PeerSetting
from weights.config import ModelConfig
from weights.manifest import DType

__all__ = ["PEERS", "Peer", "model_bytes", "shape_of", "start_peer"]

# peer: (module of its process, the formats it has)
PEERS: dict[str, tuple[str, tuple[DType, ...]]] = {
    "llama.cpp": ("tools.peer_llama", ("f32", "f16", "q8", "q4")),
    "torch": ("tools.peer_torch", ("f32", "q8")),
}
_BITS = {"f32": 32.0, "f16": 16.0, "q8": 8.5, "q4": 4.5}
_ROOT = Path(__file__).parent.parent
_STOP_S = 5.0


class _Answer(msgspec.Struct):
    """Every line that a peer writes; which fields it has depends on the request."""

    settings: tuple[str, ...] = ()
    about: dict[str, str] = {}
    seconds: float = 0.0
    missing: str = ""
    error: str = ""


class Peer:
    """A peer with one model, in a process of its own; `start_peer` makes one.

    Attributes:
        name: of the peer.
        settings: the ways to run it.
        about: versions and how it was built.
    """

    def __init__(
        self, name: str, python: str, process: subprocess.Popen[str], log: IO[str], task: Task
    ) -> None:
        self.name = name
        self._python, self._process, self._log = python, process, log
        ready = self._ask({**task._asdict(), "shape": task.shape._asdict()})
        self.settings = tuple(PeerSetting(name, setting) for setting in ready.settings)
        self.about = ready.about

    def measure_s(self, setting: str, case: Case) -> float:
        """Return the seconds of one repeat in one of its settings.

        Raises:
            HeadwiseError: the peer failed.
        """
        request = Request(setting, case.phase, case.n_tokens, case.depth, case.threads)
        return self._ask(request._asdict()).seconds

    def _ask(self, fields: dict[str, Any]) -> _Answer:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        line = ""
        # Whoever has ended cannot be written to; its last words are told below.
        with contextlib.suppress(BrokenPipeError):
            stdin.write(msgspec.json.encode(fields).decode() + "\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            raise HeadwiseError(f"the process of {self.name} ended: {self._last_words()}")
        try:
            answer = msgspec.json.decode(line, type=_Answer)
        except msgspec.DecodeError as e:
            raise HeadwiseError(f"{self.name} answered {line[:80]!r}: {e}") from None
        if answer.missing:
            raise InputError(
                f"{self.name} needs the Python package {answer.missing!r} in {self._python}; add "
                f"it with: pip install --group peers (how to build it: pyproject.toml), or name "
                f"another environment with --peer-python {self.name}=FILE"
            )
        if answer.error:
            raise HeadwiseError(f"{self.name} failed: {answer.error}; {self._last_words()}")
        return answer

    def _last_words(self) -> str:
        """Return the end of what it wrote to stderr."""
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        return " / ".join(lines[-3:]) or "it wrote nothing"


@contextlib.contextmanager
def start_peer(name: str, python: str, task: Task) -> Iterator[Peer]:
    """Start a peer and give it its model; the process ends with the context.

    Args:
        name: of `PEERS`.
        python: the interpreter that has its packages.
        task: the model.

    Raises:
        InputError: the interpreter or the Python packages of the peer are missing.
        HeadwiseError: it cannot run such a model.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            process = subprocess.Popen(
                [python, "-m", PEERS[name][0]], text=True, env=_environment(),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        except OSError as e:
            raise InputError(
                f"cannot start {python!r} for {name}: {e.strerror}; see --peer-python"
            ) from None
        try:
            yield Peer(name, python, process, log, task)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """End a peer: it does when nobody can ask it any more."""
    with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
        process.communicate(timeout=_STOP_S)
    if process.poll() is None:
        process.kill()
        process.communicate()


def _environment() -> dict[str, str]:
    """Return the environment of a peer: its own defaults, whatever headwise runs with."""
    ours = ("OMP_", "GOMP_", "KMP_", "MKL_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    # Huge pages for its weights: numpy asks for them for ours.
    env.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    return env


def shape_of(config: ModelConfig) -> Shape:
    """Return the sizes that peers need."""
    known = {name: getattr(config, name) for name in Shape._fields if name != "rope_theta"}
    return Shape(**known, rope_theta=config.rope.theta)


def model_bytes(config: ModelConfig, dtype: DType, context_tokens: int) -> int:
    """Return about what a peer takes: weights, contexts of two settings, scratch."""
    c = config
    layer = c.hidden_size * (2 * c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    layer += 3 * c.hidden_size * c.n_columns
    n_weights = c.n_layers * layer + 2 * c.vocab_size * c.hidden_size
    kv_bytes = 2 * 4 * 2 * c.n_layers * c.n_kv_heads * c.head_dim * context_tokens
    scratch_bytes = 2 * 4 * 512 * (c.vocab_size + 4 * c.n_columns) + (256 << 20)
    return int(n_weights * _BITS[dtype] / 8) + kv_bytes + scratch_bytes
