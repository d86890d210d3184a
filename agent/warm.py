"""Kernels on made-up weights: compiled here before they are needed, timed by `speed`.

A board is READY only when nothing is left to compile, so `warm_kernels` calls every kernel of a
configuration once on tiny shapes. Several agents that start on one machine do not compile the
same kernels beside each other: the first does, the others wait and load them from the cache.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from agent.compiler import compiling
from agent.kv import KvPool, KvShape
from agent.kv_ops import KvOp, KvOpCode
from agent.phase_loop import StageCall, TokenCall, load_phase_loop, load_token_loop
from agent.share import KvFormat
from agent.zmq_calls import find_calls
from kernels.entries import penalise, top_of_row
from kernels.entry import images_in_use
from kernels.errors import ResourceError
from kernels.layout import Geometry, WeightFormat
from kernels.mode import JIT_DISABLED
from kernels.paging import PAGE_DTYPES
from kernels.pool import Pool
from kernels.stage import MemberAtoms, StageKernels
from kernels.wire_floats import decode_f16, encode_f16

__all__ = ["is_warm", "log_target", "synthetic_stage", "warm_kernels"]

log = logging.getLogger(__name__)

ALIGN_BYTES = 64
# How long another process may hold the lock without a kernel being finished.
LOCK_TIMEOUT_S = 600.0
LOCK_POLL_S = 0.05
# Bits of this byte are ordinary numbers in every format; subnormal ones would slow the kernels.
FILL = 0x2C


def is_warm(fmt: WeightFormat, kv: KvFormat, int8_activations: bool) -> bool:
    """Tell whether these kernels were compiled before and are in the cache."""
    return _marker(fmt, kv, int8_activations).exists()


@cache
def log_target() -> None:
    """Log, once, what this process compiles for; the choice is made before anything compiles."""
    from kernels.target import describe  # imports LLVM

    log.info("kernel target %s", describe())


def warm_kernels(geometry: Geometry, kv: KvFormat, int8_activations: bool) -> None:
    """Compile every kernel that a member of this geometry may need, or load it from the cache."""
    if images_in_use() is None:
        log_target()
    started_s = time.monotonic()
    with _compiling_once(_marker(geometry.fmt, kv, int8_activations)), compiling():
        _call_all(geometry, kv, int8_activations)
    seconds = time.monotonic() - started_s
    log.info("kernels ready dtype=%s kv=%s seconds=%.2f", geometry.fmt.name, kv, seconds)


@contextlib.contextmanager
def _compiling_once(marker: Path) -> Iterator[None]:
    """Hold a lock while kernels compile, unless a marker says that they are in the cache."""
    lock, images = None, images_in_use()
    if not marker.exists():
        # Without a place for a lock, compiling twice is only slower.
        with contextlib.suppress(OSError):
            lock = marker.with_name("compile.lock").open("wb")
            _take_turn(lock, marker)
    if lock is not None and marker.exists():
        # Another process compiled while this one waited; loading needs no turns.
        lock.close()
    try:
        yield
        # An agent that has given its images up has compiled for itself alone.
        if images_in_use() is images and not marker.exists():
            with contextlib.suppress(OSError):
                marker.touch()
    finally:
        if lock is not None:
            lock.close()


def _take_turn(lock: BinaryIO, marker: Path) -> None:
    """Wait for the lock, or for the marker that says that it is not needed.

    Raises:
        ResourceError: whoever holds it has added nothing to the cache for LOCK_TIMEOUT_S.
        OSError: locks do not work here.
    """
    changed_ns, deadline_s = 0, 0.0
    while not marker.exists():
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            now_s = time.monotonic()
        newest_ns = _newest_ns(marker.parent)
        if newest_ns != changed_ns:
            changed_ns, deadline_s = newest_ns, now_s + LOCK_TIMEOUT_S
        elif now_s >= deadline_s:
            lock.close()
            raise ResourceError(
                f"another process has held {lock.name} for {LOCK_TIMEOUT_S:g} s without finishing "
                f"a kernel, which takes minutes at most on slow boards: it may be stopped; end it "
                f"(`fuser {lock.name}` names it) and try again"
            )
        time.sleep(LOCK_POLL_S)


def _newest_ns(cache: Path) -> int:
    """Return when something was last added to the cache; numba has a directory for each package."""
    newest_ns = cache.stat().st_mtime_ns
    for path in cache.iterdir():
        if path.is_dir():
            newest_ns = max(newest_ns, path.stat().st_mtime_ns)
    return newest_ns


def _marker(fmt: WeightFormat, kv: KvFormat, int8_activations: bool) -> Path:
    images = images_in_use()
    directory = images.directory if images else Path(os.environ.get("NUMBA_CACHE_DIR", "."))
    # Plain formats have the same kernels either way.
    int8 = int8_activations and fmt in (WeightFormat.Q8, WeightFormat.Q4)
    return directory / f"{fmt.name}-{kv}{'-int8' * int8}.warm"


def _call_all(geometry: Geometry, kv: KvFormat, int8_activations: bool) -> None:
    """Call every kernel once on tiny shapes of the same formats."""
    d, group = geometry.head_dim, min(2, geometry.heads_per_group)
    small = replace(
        geometry, hidden_size=d * group, n_layers=1, n_heads=group, n_kv_heads=1, n_columns=40,
        vocab_size=10,
    )  # fmt: skip
    pool = Pool(1 if JIT_DISABLED else 2)
    try:
        _call_stage(small, synthetic_stage(small, kv, pool, 1, 1, int8_activations))
    finally:
        pool.close()


def _call_stage(small: Geometry, kernels: StageKernels) -> None:
    """Call every kernel of a stage of few threads and columns."""
    x = np.ones((1, small.hidden_size), np.float32)
    out, half = np.zeros_like(x), np.zeros(x.size, np.uint16)
    encode_f16(x, half)
    decode_f16(half, x)
    kernels.attention(0, x, out)
    kernels.mlp(0, x, out)
    if find_calls() is not None:
        call = kernels.phase_call(x, out)
        layers, flat = np.zeros(1, np.int32), (x.reshape(-1), out.reshape(-1))
        read_bytes = np.zeros(2, np.int64)
        load_phase_loop(
            StageCall(layers, read_bytes, half, *flat, half, call.address, call.head, call.tail)
        )
    kernels.run_layers(x)
    logits = np.zeros((1, small.vocab_size), np.float32)
    kernels.logits(x, logits)
    ids = np.arange(small.vocab_size, dtype=np.uint32)
    top = (logits[0], ids, len(ids), 1.0, np.zeros(1), ids.copy(), logits[0].copy())
    top_of_row(*top)
    if find_calls() is not None:
        token = kernels.token_call(x, logits)
        calls = (*token[1:], top_of_row.address(top), top)
        load_token_loop(TokenCall(0, 0, 0, 0, token.positions, half, *flat, half, 0, *calls))
    first, n_rows = np.zeros(1, np.int64), np.full(1, small.vocab_size, np.int64)
    penalise(logits[0], first, n_rows, ids.copy(), 1.1)


def synthetic_stage(
    geometry: Geometry,
    kv: KvFormat,
    pool: Pool,
    n_groups: int,
    n_vocab: int,
    int8_activations: bool,
) -> StageKernels:
    """Return a one-layer stage on constant weights with one row begun at position 0."""
    g = geometry
    sizes = [(g.layer_norms_bytes, 1), (g.head_group_bytes, n_groups),
             (g.column_bytes, g.n_column_atoms), (g.final_norm_bytes, 1),
             (g.vocab_bytes, n_vocab)]  # fmt: skip
    offsets, end = [], 0
    for n_bytes, n_atoms in sizes:
        offsets.append(end + n_bytes * np.arange(n_atoms, dtype=np.int64))
        end += n_bytes * n_atoms
    raw = np.full(end + ALIGN_BYTES, FILL, np.uint8)
    start = -raw.ctypes.data % ALIGN_BYTES
    norms, groups, columns, final_norm, vocab = offsets
    atoms = MemberAtoms(
        layers=(0,), head_groups=(groups,), columns=(columns,), norms=norms, vocab=vocab,
        vocab_first_rows=np.zeros(n_vocab, np.int64),
        vocab_n_rows=np.full(n_vocab, g.vocab_size, np.int64),
        final_norm=int(final_norm[0]),
    )  # fmt: skip
    pool_of_pages = KvPool(KvShape(n_groups, g.head_dim, PAGE_DTYPES[kv], 64, 64, 1))
    kernels = StageKernels(
        g, np.ones(g.head_dim // 2), 1.0, raw[start : start + end], atoms, pool_of_pages.pages,
        pool_of_pages.page_table, 1, 64, pool, int8_activations,
    )  # fmt: skip
    slots = np.zeros(1, np.int32)
    pool_of_pages.apply([KvOp(KvOpCode.OPEN, 1, 1)])  # type: ignore[arg-type]
    pool_of_pages.prepare(np.array([[1, 0]], np.uint32), slots)
    kernels.begin(slots, np.zeros(1, np.int32))
    return kernels
