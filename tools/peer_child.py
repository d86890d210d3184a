"""What each peer of `tools.bench_peers` does in a process of its own: take requests, time, answer.

A peer may run in another Python environment than headwise: this file and the peers import only
the standard library, numpy and the peer itself. Lines of JSON go both ways: a `Task`, answered by
a `Ready`, then a `Request` each, answered by seconds; a text under `error` or `missing` ends it.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

__all__ = ["PeerError", "PeerModel", "Request", "Shape", "Task", "serve", "settle"]


class PeerError(Exception):
    """The peer cannot do what it is asked for."""


class Shape(NamedTuple):
    """Sizes of a model, named as in `weights.config.ModelConfig`."""

    family: str
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_columns: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool


class Task(NamedTuple):
    """The model that a peer has to hold.

    Attributes:
        dtype: f32, f16, q8 or q4, of every matrix.
        context_tokens: the longest context.
        exact: f32 keys and values, not f16.
        directory: where files may be made.
        n_cores: threads for what is not timed.
    """

    shape: Shape
    dtype: str
    context_tokens: int
    exact: bool
    directory: str
    n_cores: int


class Request(NamedTuple):
    """One repeat: `pp` reads n_tokens at once, `tg` one after the other, from `depth` on."""

    setting: str
    phase: str
    n_tokens: int
    depth: int
    threads: int


class PeerModel(Protocol):
    """What a peer offers.

    Attributes:
        settings: ways to run that are all measured.
        about: versions and how it was built.
    """

    settings: tuple[str, ...]
    about: dict[str, str]

    def measure_s(self, request: Request) -> float:
        """Return the seconds of one repeat, after one token to warm up."""


def serve(make: Callable[[Task], PeerModel]) -> int:
    """Answer requests on stdin until it ends; return the exit code."""
    # Ctrl-C is for the parent, whose end closes stdin. Libraries may write to stdout.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(fields: dict[str, Any]) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        raw = json.loads(sys.stdin.readline())
        model = make(Task(**{**raw, "shape": Shape(**raw["shape"])}))
        settle()
        answer({"settings": model.settings, "about": model.about})
        for line in sys.stdin:
            seconds = model.measure_s(Request(**json.loads(line)))
            settle()
            answer({"seconds": seconds})
    except ModuleNotFoundError as e:
        answer({"missing": e.name})
        return 1
    except (PeerError, MemoryError, OSError) as e:
        answer({"error": str(e) or type(e).__name__})
        return 1
    return 0


def settle(limit_s: float = 2.0) -> None:
    """Wait until the threads of this process have parked.

    OpenMP's spin for milliseconds after their work, on cores that the other side is timed on.
    """
    stop_s = time.monotonic() + limit_s
    while time.monotonic() < stop_s:
        used_s = time.process_time()
        time.sleep(0.01)
        if time.process_time() - used_s < 0.001:
            return
