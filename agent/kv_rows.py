"""Rows of a KV pool as bytes, to move them between boards: out of one pool's pages, into another's.

A rectangle is some head groups of one context times a run of positions. Its bytes go page after
page; for each page

    all 64 positions    the page of each group, as it lies in the pool
    fewer               K (groups, positions, d), V (groups, positions, d), and of int8 pages
                        the scales of K and of V, (groups, positions) float32

Either way a position of a group takes `token_bytes`, and only copies are made: bits stay what they
are. Positions outside the rectangle are neither read nor written. Pools belong to the hot thread,
and so do these calls. Pure.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.ids import KvId
from agent.kv import KvPool, KvShape
from kernels.errors import WireError
from kernels.paging import PAGE_TOKENS

__all__ = ["copy_rows", "export_rows", "import_rows", "rows_bytes", "token_bytes"]

_BLOCK = 8  # positions of K that lie side by side
_SCALE_BYTES = 4

Array = npt.NDArray[Any]


def token_bytes(shape: KvShape) -> int:
    """Return the bytes of one position of one group, keys, values and scales."""
    return shape.page_bytes // PAGE_TOKENS


def rows_bytes(shape: KvShape, n_groups: int, n_tokens: int) -> int:
    """Return the bytes of a rectangle."""
    return n_groups * n_tokens * token_bytes(shape)


def export_rows(
    pool: KvPool, kv_id: KvId, groups: Sequence[int], first: int, n_tokens: int
) -> bytearray:
    """Return the bytes of positions first .. first + n_tokens - 1 of some local head groups.

    Args:
        pool: where they lie.
        kv_id: the context.
        groups: numbers of local groups, in the order wanted.
        first: first position.
        n_tokens: how many.

    Raises:
        WireError: a context, group or position that is not here.
    """
    data = bytearray(rows_bytes(pool.shape, len(groups), n_tokens))
    at = 0
    for part in _parts(pool, kv_id, groups, first, n_tokens):
        for rows in part.read():
            data[at : at + rows.nbytes] = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
            at += rows.nbytes
    return data


def import_rows(
    pool: KvPool,
    kv_id: KvId,
    groups: Sequence[int],
    first: int,
    n_tokens: int,
    data: bytes | bytearray | memoryview,
) -> None:
    """Write the bytes of a rectangle where `export_rows` would read them.

    The context must have room for the positions (`KvPool.extend`).

    Raises:
        WireError: as for `export_rows`, or a number of bytes that is not the rectangle's.
    """
    n_bytes = rows_bytes(pool.shape, len(groups), n_tokens)
    if len(data) != n_bytes:
        raise WireError(
            f"{len(data)} bytes came for {n_tokens} positions of {len(groups)} head groups, which "
            f"take {n_bytes}"
        )
    raw = np.frombuffer(data, np.uint8)
    at = 0
    for part in _parts(pool, kv_id, groups, first, n_tokens):
        at = part.write(raw, at)


def copy_rows(
    source: KvPool,
    source_groups: Sequence[int],
    target: KvPool,
    target_groups: Sequence[int],
    kv_id: KvId,
    first: int,
    n_tokens: int,
) -> None:
    """Copy a rectangle between two pools of one process: what stays when its epoch changes.

    Raises:
        WireError: as for `import_rows`.
    """
    if source.pages.dtype != target.pages.dtype:
        raise WireError(
            f"rows of {source.pages.dtype} cannot be copied to a pool of {target.pages.dtype}"
        )
    parts = _parts(source, kv_id, source_groups, first, n_tokens)
    others = _parts(target, kv_id, target_groups, first, n_tokens)
    for part, other in zip(parts, others, strict=True):
        other.take(part)


class _Part(NamedTuple):
    """Positions start .. end - 1 of one page number of several groups.

    `numbers` (n_groups,) are the pages in the pool.
    """

    pool: KvPool
    numbers: npt.NDArray[np.int32]
    start: int
    end: int

    @property
    def whole(self) -> bool:
        """Whether it is all positions of the page."""
        return self.end - self.start == PAGE_TOKENS

    def read(self) -> Iterator[Array]:
        """Return the rows in their order on the wire, whole pages as they lie in the pool."""
        if self.whole:
            for number in self.numbers.tolist():
                yield self.pool.pages[number]
            return
        for view, index in self._views():
            yield view[index]

    def write(self, raw: npt.NDArray[np.uint8], at: int) -> int:
        """Write the rows that begin at byte `at`; return where they end."""
        if self.whole:
            for number in self.numbers.tolist():
                page = self.pool.pages[number].view(np.uint8)
                page[:] = raw[at : at + page.nbytes]
                at += page.nbytes
            return at
        n_rows = self.end - self.start
        for view, index in self._views():
            width = view.shape[-1] if view.ndim == 3 else view.shape[2]
            shape = (len(self.numbers), n_rows, width)
            end = at + len(self.numbers) * n_rows * width * view.itemsize
            view[index] = _as(view.dtype, raw[at:end]).reshape(shape)
            at = end
        return at

    def take(self, other: "_Part") -> None:
        """Write the rows of a part of the same size, of another pool."""
        if self.whole:
            pairs = zip(self.numbers.tolist(), other.numbers.tolist(), strict=True)
            for number, from_number in pairs:
                self.pool.pages[number] = other.pool.pages[from_number]
            return
        for (view, index), rows in zip(self._views(), other.read(), strict=True):
            view[index] = rows

    def _views(self) -> Iterator[tuple[Array, tuple[Any, ...]]]:
        """Return views of the pool and indices that give (n_groups, positions, width) each."""
        pages, d = self.pool.pages, self.pool.shape.head_dim
        pages_of = self.numbers[:, None]
        p = np.arange(self.start, self.end)[None]
        n, size = len(pages), PAGE_TOKENS * d
        k = pages[:, :size].reshape(n, PAGE_TOKENS // _BLOCK, d, _BLOCK)
        yield k, (pages_of, p // _BLOCK, slice(None), p % _BLOCK)
        yield pages[:, size : 2 * size].reshape(n, PAGE_TOKENS, d), (pages_of, p)
        if pages.dtype == np.int8:
            scales = pages[:, 2 * size :].reshape(n, 2, PAGE_TOKENS, _SCALE_BYTES)
            for kind in range(2):
                yield scales[:, kind], (pages_of, p)


def _as(dtype: npt.DTypeLike, raw: npt.NDArray[np.uint8]) -> Array:
    """Return bytes as numbers; a copy, because they may begin anywhere."""
    return np.frombuffer(raw.tobytes(), dtype)


def _parts(
    pool: KvPool, kv_id: KvId, groups: Sequence[int], first: int, n_tokens: int
) -> Iterator[_Part]:
    end = first + n_tokens
    if first < 0 or n_tokens < 0 or end > pool.n_tokens(kv_id):
        raise WireError(
            f"context {kv_id} has {pool.n_tokens(kv_id)} tokens here; positions {first} to "
            f"{end - 1} are not among them"
        )
    if any(not 0 <= group < pool.shape.n_groups for group in groups):
        raise WireError(
            f"head groups {list(groups)[:8]} are not all among the {pool.shape.n_groups} held here"
        )
    table = pool.pages_of(kv_id)
    for page in range(first // PAGE_TOKENS, -(-end // PAGE_TOKENS)):
        page_first = page * PAGE_TOKENS
        start = max(first - page_first, 0)
        stop = min(end - page_first, PAGE_TOKENS)
        if stop > start:
            yield _Part(pool, table[list(groups), page], start, stop)
