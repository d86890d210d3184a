"""Pages of cached keys and values: which page of the pool holds which tokens of which context.

A context (kv_id) takes a slot; its page p holds tokens [64 p, 64 p + 64) and is one page of the
pool for every local head group, so all groups of a member grow together. FORK shares full pages
by reference count and copies the last partial one, where both contexts go on writing; a shared
page is copied if one of its owners truncates and then writes into it. Pure bookkeeping on NumPy
arrays: the kernels read `pages` and `page_table`, nothing here knows frames or clocks.

Two promises keep a long run safe: a context never sees pages of another, and pages that OPEN
reserved are there when their tokens come.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from agent.ids import KvId
from agent.kv_ops import KvOp, KvOpCode
from agent.kv_shape import KvShape, pool_pages
from kernels.errors import ResourceError, WireError
from kernels.paging import PAGE_TOKENS, n_pages_for, page_elements

__all__ = ["KvPool", "KvShape", "pool_pages"]

NO_PAGE = -1


class KvPool:
    """The KV pool of one member.

    Attributes:
        pages: (n_pages, page_elements) uint16 (f16 bits), float32 or int8, see kernels.paging.
        page_table: (n_contexts, n_groups, max_pages) int32, page of the pool or -1.
    """

    def __init__(self, shape: KvShape) -> None:
        self.shape = shape
        self.max_pages = n_pages_for(shape.context_tokens)
        # Without head groups the books are kept for one group that has no memory, so that every
        # member answers the same operations in the same way.
        self._n_groups = max(1, shape.n_groups)
        n_pages = self._n_groups * pool_pages(shape)
        row = page_elements(shape.head_dim, shape.dtype)
        # Written once now: memory that is only promised by the system may not be there later.
        self.pages = np.empty((n_pages if shape.n_groups else 1, row), shape.dtype)
        self.pages.fill(0)
        self._table = np.full((shape.n_contexts, self._n_groups, self.max_pages), NO_PAGE, np.int32)
        self.page_table = self._table[:, : shape.n_groups]
        self._refs = np.zeros(n_pages, np.int32)
        self._free = np.arange(n_pages - 1, -1, -1, dtype=np.int32)
        self._n_free = n_pages
        self._slot_of: dict[KvId, int] = {}
        self._free_slots = list(range(shape.n_contexts - 1, -1, -1))
        self._n_tokens = [0] * shape.n_contexts
        self._n_held = [0] * shape.n_contexts
        self._n_reserved = [0] * shape.n_contexts
        self._forked = False

    @property
    def n_free_pages(self) -> int:
        """Pages per group that no context holds; reserved ones count as free."""
        return self._n_free // self._n_groups

    @property
    def n_used_bytes(self) -> int:
        """Bytes of the pages that contexts hold."""
        if not self.shape.n_groups:
            return 0
        return (len(self._refs) - self._n_free) * self.shape.page_bytes

    def n_tokens(self, kv_id: KvId) -> int:
        """Return how many tokens of a context are written."""
        return self._n_tokens[self._slot(kv_id)]

    def note_written(self, kv_id: KvId, n_tokens: int) -> None:
        """Take in that compiled code has written up to n_tokens, at most `own_tokens`."""
        self._n_tokens[self._slot(kv_id)] = n_tokens

    def own_tokens(self, kv_id: KvId, n_tokens: int) -> int:
        """Return up to how many tokens a context of n_tokens may grow without a word to this pool.

        That is as far as the pages go that it holds and no other context shares.
        """
        slot = self._slot(kv_id)
        page = n_tokens // PAGE_TOKENS
        while page < self._n_held[slot] and self._refs[self._table[slot, 0, page]] == 1:
            page += 1
        return min(page * PAGE_TOKENS, self.shape.context_tokens)

    @property
    def kv_ids(self) -> list[KvId]:
        """The contexts that are open."""
        return list(self._slot_of)

    def pages_of(self, kv_id: KvId) -> npt.NDArray[np.int32]:
        """Return the pages of a context, (n_groups, max_pages), -1 where it has none.

        Raises:
            WireError: the context is not open.
        """
        pages: npt.NDArray[np.int32] = self.page_table[self._slot(kv_id)]
        return pages

    def extend(self, kv_id: KvId, n_tokens: int) -> None:
        """Give a context pages of its own up to n_tokens; somebody else fills them (`kv_rows`).

        Raises:
            WireError: an unknown context, or more tokens than the plan allows.
            ResourceError: no page is free.
        """
        n_before = self.n_tokens(kv_id)
        if n_tokens > n_before:
            self._grow(kv_id, n_before, n_tokens - 1)

    def apply(self, ops: Iterable[KvOp]) -> None:
        """Carry out operations in order; those before a failing one stay done.

        Raises:
            WireError: an unknown context, or tokens that a context does not have.
            ResourceError: no slot or not enough pages.
        """
        for op in ops:
            if op.code == KvOpCode.OPEN:
                self._open(op.kv_id, op.a)
            elif op.code == KvOpCode.FORK:
                self._fork(op.kv_id, KvId(op.a), op.b)
            elif op.code == KvOpCode.TRUNCATE:
                self._truncate(op.kv_id, op.a)
            else:
                self._release(op.kv_id)

    def prepare(self, rows: npt.NDArray[np.uint32], slots: npt.NDArray[np.int32]) -> None:
        """Make the pages of rows about to be written writable and fill in their slots.

        Args:
            rows: (n_rows, 2) uint32, kv_id and pos. The rows of one context have consecutive
                positions, each once, that start at or below its tokens written so far.
            slots: (n_rows,) int32, filled in place.

        Raises:
            WireError: an unknown context, a hole, a repeated position, or pos beyond the context.
            ResourceError: no page is free.
        """
        if len(rows) == 1:
            kv_id, pos = rows[0].tolist()
            slots[0] = self._grow(kv_id, pos, pos)
            return
        order = np.lexsort((rows[:, 1], rows[:, 0]))
        kv_ids, positions = rows[order, 0], rows[order, 1].astype(np.int64)
        starts = np.flatnonzero(np.diff(kv_ids, prepend=kv_ids[0] ^ 1))
        inside = np.diff(positions) != 1
        inside[starts[1:] - 1] = False
        if inside.any():
            bad = int(np.flatnonzero(inside)[0])
            raise WireError(
                f"rows of context {kv_ids[bad]} go from position {positions[bad]} to "
                f"{positions[bad + 1]}; the rows of one step must be consecutive"
            )
        ends = np.append(starts[1:], len(rows))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            first, last = int(positions[start]), int(positions[end - 1])
            slots[order[start:end]] = self._grow(KvId(int(kv_ids[start])), first, last)

    def check(self) -> None:
        """Compare the books with the page table; for tests and when idle.

        Raises:
            AssertionError: a page is lost, doubled, or counted wrongly.
        """
        held = self._table[self._table != NO_PAGE]
        counted = np.bincount(held, minlength=len(self._refs))
        assert (counted == self._refs).all(), "reference counts disagree with the page table"
        free = self._free[: self._n_free]
        assert len(np.unique(free)) == len(free), "a page is free twice"
        assert (self._refs[free] == 0).all(), "a held page is free"
        assert self._n_free + np.count_nonzero(self._refs) == len(self._refs), "a page is lost"
        used = set(self._slot_of.values())
        assert len(used) == len(self._slot_of), "two contexts share a slot"
        assert used.isdisjoint(self._free_slots), "a slot in use is free"
        for slot in range(self.shape.n_contexts):
            n_held = self._n_held[slot]
            assert (self._table[slot, :, :n_held] != NO_PAGE).all()
            assert (self._table[slot, :, n_held:] == NO_PAGE).all()
            assert self._n_tokens[slot] <= n_held * PAGE_TOKENS
        assert self.n_free_pages >= self._promised(), "reserved pages were given away"

    # Operations.

    def _slot(self, kv_id: int) -> int:
        try:
            return self._slot_of[KvId(kv_id)]
        except KeyError:
            raise WireError(f"context {kv_id} is not open on this agent") from None

    def _take_slot(self, kv_id: KvId) -> int:
        if not self._free_slots:
            raise ResourceError(
                f"context {kv_id} cannot be opened: all {self.shape.n_contexts} contexts are in "
                f"use; release one or plan with more"
            )
        slot = self._slot_of[kv_id] = self._free_slots.pop()
        return slot

    def _open(self, kv_id: KvId, n_tokens: int) -> None:
        """Open a context, or raise the reservation of one that is open."""
        if n_tokens > self.shape.context_tokens:
            raise ResourceError(
                f"context {kv_id} asks for {n_tokens} tokens; the plan allows "
                f"{self.shape.context_tokens}"
            )
        n_pages = n_pages_for(n_tokens)
        slot = self._slot_of.get(kv_id)
        n_held = 0 if slot is None else max(self._n_held[slot], self._n_reserved[slot])
        n_unpromised = self.n_free_pages - self._promised()
        if n_pages - n_held > n_unpromised:
            raise ResourceError(
                f"context {kv_id} needs {n_pages - n_held} KV pages for {n_tokens} tokens but "
                f"{n_unpromised} of {len(self._refs) // self._n_groups} are free; release "
                f"contexts or lower the context length"
            )
        if slot is None:
            slot = self._take_slot(kv_id)
        self._n_reserved[slot] = max(self._n_reserved[slot], n_pages)

    def _fork(self, kv_id: KvId, source_id: KvId, n_tokens: int) -> None:
        source = self._slot(source_id)
        if kv_id in self._slot_of:
            raise WireError(f"context {kv_id} is open already; fork into a new kv_id")
        if n_tokens > self._n_tokens[source]:
            raise WireError(
                f"context {source_id} has {self._n_tokens[source]} tokens; {n_tokens} cannot be "
                f"shared"
            )
        slot = self._take_slot(kv_id)
        n_full = n_tokens // PAGE_TOKENS
        shared = self._table[source, :, :n_full]
        self._table[slot, :, :n_full] = shared
        self._refs[shared.ravel()] += 1
        self._n_held[slot] = n_full
        self._forked = True
        if n_tokens % PAGE_TOKENS:
            try:
                self._table[slot, :, n_full] = self._copy(kv_id, self._table[source, :, n_full])
                self._n_held[slot] += 1
            except ResourceError:
                self._release(kv_id)
                raise
        self._n_tokens[slot] = n_tokens

    def _truncate(self, kv_id: KvId, n_tokens: int) -> None:
        slot = self._slot(kv_id)
        n_tokens = min(n_tokens, self._n_tokens[slot])
        self._drop(slot, n_pages_for(n_tokens))
        self._n_tokens[slot] = n_tokens

    def _release(self, kv_id: KvId) -> None:
        slot = self._slot(kv_id)
        self._drop(slot, 0)
        self._n_tokens[slot] = self._n_reserved[slot] = 0
        del self._slot_of[kv_id]
        self._free_slots.append(slot)

    # Pages.

    def _promised(self) -> int:
        """Return the pages per group that open contexts may still take by reservation."""
        return sum(max(0, r - n) for r, n in zip(self._n_reserved, self._n_held, strict=True))

    def _grow(self, kv_id: int, first: int, last: int) -> int:
        """Make positions first..last of a context writable and return its slot."""
        slot = self._slot(kv_id)
        # A member without head groups sees only some rows and keeps nothing of them.
        hole = first > self._n_tokens[slot] and self.shape.n_groups
        if last >= self.shape.context_tokens or hole:
            raise WireError(
                f"context {kv_id} has {self._n_tokens[slot]} of at most "
                f"{self.shape.context_tokens} tokens; position {first} to {last} does not fit"
            )
        n_before = self._n_held[slot]
        for page in range(n_before, last // PAGE_TOKENS + 1):
            self._table[slot, :, page] = self._allocate(kv_id, page < self._n_reserved[slot])
            self._n_held[slot] = page + 1
        if self._forked:
            for page in range(first // PAGE_TOKENS, min(n_before, last // PAGE_TOKENS + 1)):
                self._unshare(kv_id, slot, page)
        if last >= self._n_tokens[slot]:
            self._n_tokens[slot] = last + 1
        return slot

    def _allocate(self, kv_id: int, reserved: bool) -> npt.NDArray[np.int32]:
        n_unpromised = self.n_free_pages - (0 if reserved else self._promised())
        if n_unpromised < 1:
            raise ResourceError(
                f"context {kv_id} needs one more KV page of {PAGE_TOKENS} tokens but none is "
                f"free; release contexts or reserve the tokens when opening it"
            )
        self._n_free -= self._n_groups
        taken = self._free[self._n_free : self._n_free + self._n_groups].copy()
        self._refs[taken] = 1
        return taken

    def _unshare(self, kv_id: int, slot: int, page: int) -> None:
        """Give a context its own copy of a page that it shares and is about to write."""
        shared = self._table[slot, :, page].copy()
        if self._refs[shared[0]] > 1:
            self._table[slot, :, page] = self._copy(kv_id, shared)
            self._refs[shared] -= 1

    def _copy(self, kv_id: int, source: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return new pages with the contents of `source`, one for each group."""
        own = self._allocate(kv_id, reserved=False)
        if self.shape.n_groups:
            self.pages[own] = self.pages[source]
        return own

    def _drop(self, slot: int, n_pages: int) -> None:
        """Let go of a context's pages from number n_pages on.

        Pages that a fork keeps cannot stay reserved for this context: they are taken.
        """
        dropped = self._table[slot, :, n_pages : self._n_held[slot]].ravel()
        self._refs[dropped] -= 1
        freed = dropped[self._refs[dropped] == 0]
        self._free[self._n_free : self._n_free + len(freed)] = freed
        self._n_free += len(freed)
        self._table[slot, :, n_pages : self._n_held[slot]] = NO_PAGE
        self._n_held[slot] = min(n_pages, self._n_held[slot])
        n_kept = (len(dropped) - len(freed)) // self._n_groups
        self._n_reserved[slot] = max(0, self._n_reserved[slot] - n_kept)
