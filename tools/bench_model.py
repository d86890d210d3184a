"""A whole model in this process, run as an agent runs it that holds every atom, and timed.

Prompts go in calls of as many rows as the engine sends. What a context holds before the measured
tokens is made up: attention takes the same time over any numbers.
"""

import math
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.ids import Epoch, KvId, ModelId, Rank, RunId
from agent.kv_ops import KvOp, KvOpCode
from agent.kv_shape import KvShape
from agent.member import kv_shape, make_member
from agent.resources import usable_cores
from agent.share import Assignment, AtomRange, KvFormat, LayerShare, WireFormat
from agent.warm import log_target, synthetic_stage
from kernels.errors import HeadwiseError
from kernels.formats import kept_floats
from kernels.layout import COLUMNS_PER_ATOM, Geometry
from kernels.paging import PAGE_DTYPES, PAGE_TOKENS, page_elements
from kernels.phases import run_stage
from kernels.pool import Pool
from weights.manifest import Manifest

__all__ = [
    "BenchModel", "Setup", "assignment_of", "load_kernels", "runtime_bytes", "weights_bytes",
]  # fmt: skip

CONTEXT = KvId(1)


class Setup(NamedTuple):
    """How models are run.

    Attributes:
        max_rows: most rows of a call.
        context_tokens: longest context.
        exact: f32 activations, and KV unless kv says otherwise.
        kv: type of cached keys and values; None means what plans have.
    """

    max_rows: int
    context_tokens: int
    exact: bool
    kv: KvFormat | None = None

    @property
    def wire_format(self) -> WireFormat:
        """What exact plans and others send."""
        return "f32" if self.exact else "f16"

    @property
    def kv_format(self) -> KvFormat:
        """What is cached."""
        return self.kv or self.wire_format


def load_kernels(geometry: Geometry, setup: Setup) -> bool:
    """Run every measured kernel once, on tiny shapes; tell whether all came from numba's cache."""
    d, group = geometry.head_dim, min(2, geometry.heads_per_group)
    small = replace(
        geometry, hidden_size=d * group, n_layers=1, n_heads=group, n_kv_heads=1, n_columns=40,
        vocab_size=10,
    )  # fmt: skip
    log_target()
    dispatcher: Any = run_stage
    n_compiled = sum(dispatcher.stats.cache_misses.values())
    kernels = synthetic_stage(small, setup.kv_format, Pool(1), 1, 1, not setup.exact)
    x = np.ones((1, small.hidden_size), np.float32)
    kernels.run_layers(x)
    kernels.logits(x, np.zeros((1, small.vocab_size), np.float32))
    return bool(sum(dispatcher.stats.cache_misses.values()) == n_compiled)


class BenchModel:
    """A model on the threads of one pool.

    Args:
        manifest: of the model; its hashes are not looked at.
        store: (weights_bytes,) uint8, in memory or mapped.
        setup: how to run it.
        pool: the threads, shared by models that run one after the other.

    Raises:
        ResourceError: no memory for keys and values.
    """

    def __init__(
        self, manifest: Manifest, store: npt.NDArray[np.uint8], setup: Setup, pool: Pool
    ) -> None:
        geometry = manifest.geometry
        self._member = make_member(_everything(manifest, setup), manifest, store, pool)
        self._max_rows = setup.max_rows
        self._weights_bytes = weights_bytes(manifest)
        self._vocab_bytes = geometry.n_vocab_atoms * geometry.vocab_bytes
        self._kv_token_bytes = _kv_token_bytes(geometry, setup)
        rng = np.random.default_rng(1)
        shape = (setup.max_rows, geometry.hidden_size)
        self._embeddings = rng.standard_normal(shape, np.float32)
        self._x = np.zeros(shape, np.float32)
        self._logits = np.zeros((1, geometry.vocab_size), np.float32)
        self._slots = np.zeros(setup.max_rows, np.int32)
        self._positions = np.arange(setup.context_tokens, dtype=np.int32)
        self._fill_context(rng, setup.context_tokens)

    def decode_s(self, depth: int, n_tokens: int) -> float:
        """Return the seconds that n_tokens take, one after the other, from position depth on."""
        started_s = time.perf_counter()
        for position in range(depth, depth + n_tokens):
            self._member.kernels.run_all(self._begun(position, 1), self._logits)
        return self._checked_s(time.perf_counter() - started_s)

    def prefill_s(self, depth: int, n_tokens: int) -> float:
        """Return the seconds of a prompt of n_tokens, logits of its last one included."""
        started_s = time.perf_counter()
        stop = depth + n_tokens
        for first in range(depth, stop, self._max_rows):
            n_rows = min(self._max_rows, stop - first)
            self._member.kernels.run_layers(self._begun(first, n_rows))
        n_last = (n_tokens - 1) % self._max_rows + 1
        self._run_vocab(stop - 1, n_last)
        return self._checked_s(time.perf_counter() - started_s)

    def decode_bytes(self, depth: int, n_tokens: int) -> int:
        """Return what `decode_s` reads: weights, keys and values."""
        n_attended = n_tokens * depth + n_tokens * (n_tokens + 1) // 2
        return n_tokens * self._weights_bytes + n_attended * self._kv_token_bytes

    def prefill_bytes(self, depth: int, n_tokens: int) -> int:
        """Return what `prefill_s` reads at least: weights, keys and values once a call."""
        ends = range(depth + self._max_rows, depth + n_tokens, self._max_rows)
        n_attended = sum(ends) + depth + n_tokens
        n_calls = math.ceil(n_tokens / self._max_rows)
        layers_bytes = self._weights_bytes - self._vocab_bytes
        return n_calls * layers_bytes + self._vocab_bytes + n_attended * self._kv_token_bytes

    def _fill_context(self, rng: np.random.Generator, n_tokens: int) -> None:
        """Take all pages of the context, and write numbers into them as if it had been run."""
        kv = self._member.kv
        kv.apply([KvOp(KvOpCode.OPEN, CONTEXT, n_tokens)])
        rows = np.full((n_tokens, 2), CONTEXT, np.uint32)
        rows[:, 1] = self._positions
        slots = np.zeros(n_tokens, np.int32)
        kv.prepare(rows, slots)
        self._slots[:] = slots[0]
        kv.pages[:] = _random_page(rng, kv.shape)

    def _begun(self, first: int, n_rows: int) -> npt.NDArray[np.float32]:
        """Return n_rows fresh rows, begun at positions from `first` on."""
        x = self._x[:n_rows]
        x[:] = self._embeddings[:n_rows]
        self._member.kernels.begin(self._slots[:n_rows], self._positions[first : first + n_rows])
        return x

    def _run_vocab(self, position: int, n_rows: int) -> None:
        """Write the logits of the last one of n_rows rows."""
        kernels = self._member.kernels
        if n_rows > 1:
            kernels.begin(self._slots[:1], self._positions[position : position + 1])
        kernels.logits(self._x[n_rows - 1 : n_rows], self._logits)

    def _checked_s(self, seconds: float) -> float:
        """Return the seconds, if what was computed in them can be right."""
        if not (np.isfinite(self._logits).all() and self._logits.any()):
            raise HeadwiseError("the kernels gave logits that are not finite, or all zero")
        self._logits.fill(0)
        return seconds


def weights_bytes(manifest: Manifest) -> int:
    """Return the bytes of weights that a decoded token reads: all but the embedding's."""
    sections = [s for s in manifest.sections if s.kind != "embedding"]
    return sum(s.stride_bytes * len(s.hashes) for s in sections)


def runtime_bytes(manifest: Manifest, setup: Setup) -> int:
    """Return a bound on what a `BenchModel` takes besides its weights."""
    g = manifest.geometry
    n_columns = g.n_column_atoms * COLUMNS_PER_ATOM
    # Numbers of a row in all its forms, and once more for their 8-bit versions.
    row_bytes = 4 * 2 * (6 * g.hidden_size + 3 * g.n_kv_heads * g.qkv_rows + 2 * n_columns)
    kv_bytes = kv_shape(_everything(manifest, setup), g).pool_bytes
    context_bytes = 64 * setup.context_tokens
    thread_bytes = 4 * usable_cores() * kept_floats(setup.max_rows)
    return kv_bytes + setup.max_rows * row_bytes + 4 * g.vocab_size + context_bytes + thread_bytes


def _random_page(rng: np.random.Generator, shape: KvShape) -> npt.NDArray[Any]:
    """Return a page of standard normal numbers."""
    n = page_elements(shape.head_dim, shape.dtype)
    numbers = rng.standard_normal(n, np.float32)
    if shape.dtype == np.uint16:
        return numbers.astype(np.float16).view(np.uint16)
    if shape.dtype == np.int8:
        page = np.clip(40 * numbers, -127, 127).astype(np.int8)
        page.view(np.float32)[-2 * PAGE_TOKENS :] = 1 / 40
        return page
    return numbers


def _kv_token_bytes(geometry: Geometry, setup: Setup) -> int:
    dtype = np.dtype(PAGE_DTYPES[setup.kv_format])
    page_bytes = page_elements(geometry.head_dim, dtype) * dtype.itemsize
    return geometry.n_layers * geometry.n_kv_heads * page_bytes // PAGE_TOKENS


def assignment_of(
    setup: Setup, layers: tuple[LayerShare, ...], vocab: tuple[AtomRange, ...]
) -> Assignment:
    """Return the assignment of a member that nobody shares a plan with."""
    return Assignment(
        run_id=RunId(1),
        epoch=Epoch(1),
        rank=Rank(0),
        model_id=ModelId(""),
        manifest_bytes=1,
        layers=layers,
        vocab=vocab,
        wire=setup.wire_format,
        kv=setup.kv_format,
        context_tokens=setup.context_tokens,
        kv_tokens=setup.context_tokens,
        n_contexts=1,
        max_rows=setup.max_rows,
    )


def _everything(manifest: Manifest, setup: Setup) -> Assignment:
    """Return the assignment of a cluster's only member."""
    g = manifest.geometry
    groups, columns = (AtomRange(0, g.n_kv_heads),), (AtomRange(0, g.n_column_atoms),)
    layers = tuple(LayerShare(i, groups, columns) for i in range(g.n_layers))
    return assignment_of(setup, layers, (AtomRange(0, g.n_vocab_atoms),))
