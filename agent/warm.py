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
from pathlib import Path

import numpy as np

from agent.kv import KvPool, KvShape
from agent.kv_ops import KvOp, KvOpCode
from agent.native import find_calls
from agent.phase_loop import StageCall, load_phase_loop
from agent.share import KvFormat
from kernels.exchange import decode_f16, encode_f16
from kernels.layout import Geometry
from kernels.pool import Pool
from kernels.stage import MemberAtoms, StageKernels
from kernels.vocab import log_sum_exp, penalise, top_candidates

__all__ = ["synthetic_stage", "warm_kernels"]

log = logging.getLogger(__name__)

ALIGN_BYTES = 64
# Bits of this byte are ordinary numbers in every format; subnormal ones would slow the kernels.
FILL = 0x2C


def warm_kernels(geometry: Geometry, kv: KvFormat, int8_activations: bool) -> None:
    """Compile every kernel that a member of this geometry may need, or load it from the cache."""
    started_s = time.monotonic()
    with _compiling_once(f"{geometry.fmt.name}-{kv}{'-int8' * int8_activations}"):
        _call_all(geometry, kv, int8_activations)
    seconds = time.monotonic() - started_s
    log.info("kernels ready dtype=%s kv=%s seconds=%.2f", geometry.fmt.name, kv, seconds)


@contextlib.contextmanager
def _compiling_once(what: str) -> Iterator[None]:
    """Hold a lock while kernels compile, unless a marker says that they are in numba's cache."""
    directory = Path(os.environ.get("NUMBA_CACHE_DIR", "."))
    marker = directory / f"{what}.warm"
    lock = None
    if not marker.exists():
        # Without a place for a lock, compiling twice is only slower.
        with contextlib.suppress(OSError):
            lock = (directory / "compile.lock").open("wb")
            fcntl.flock(lock, fcntl.LOCK_EX)
    if lock is not None and marker.exists():
        # Another process compiled while this one waited; loading needs no turns.
        lock.close()
    try:
        yield
        if not marker.exists():
            with contextlib.suppress(OSError):
                marker.touch()
    finally:
        if lock is not None:
            lock.close()


def _call_all(geometry: Geometry, kv: KvFormat, int8_activations: bool) -> None:
    """Call every kernel once on tiny shapes of the same formats."""
    d, group = geometry.head_dim, min(2, geometry.heads_per_group)
    small = replace(
        geometry, hidden_size=d * group, n_layers=1, n_heads=group, n_kv_heads=1, n_columns=40,
        vocab_size=10,
    )  # fmt: skip
    kernels = synthetic_stage(small, kv, Pool(1), 1, 1, int8_activations)
    x = np.ones((1, small.hidden_size), np.float32)
    out, half = np.zeros_like(x), np.zeros(x.size, np.uint16)
    encode_f16(x, half)
    decode_f16(half, x)
    kernels.attention(0, x, out)
    kernels.mlp(0, x, out)
    if find_calls() is not None:
        call = kernels.phase_call(x, out)
        layers, flat = np.zeros(1, np.int32), (x.reshape(-1), out.reshape(-1))
        load_phase_loop(StageCall(layers, half, *flat, half, call.address, call.head, call.tail))
    kernels.run_layers(x)
    logits = np.zeros((1, small.vocab_size), np.float32)
    kernels.logits(x, logits)
    ids = np.arange(small.vocab_size, dtype=np.uint32)
    first, n_rows = np.zeros(1, np.int64), np.full(1, small.vocab_size, np.int64)
    penalise(logits[0], first, n_rows, ids.copy(), 1.1)
    log_sum_exp(logits[0], 1.0)
    top_candidates(logits[0], ids, len(ids), ids.copy(), logits[0].copy())


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
    dtype = np.uint16 if kv == "f16" else np.float32
    pool_of_pages = KvPool(KvShape(n_groups, g.head_dim, dtype, 64, 64, 1))
    kernels = StageKernels(
        g, np.ones(g.head_dim // 2), 1.0, raw[start : start + end], atoms, pool_of_pages.pages,
        pool_of_pages.page_table, 1, 64, pool, int8_activations,
    )  # fmt: skip
    slots = np.zeros(1, np.int32)
    pool_of_pages.apply([KvOp(KvOpCode.OPEN, 1, 1)])  # type: ignore[arg-type]
    pool_of_pages.prepare(np.array([[1, 0]], np.uint32), slots)
    kernels.begin(slots, np.zeros(1, np.int32))
    return kernels
