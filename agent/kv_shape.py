"""How much memory a member's KV takes: the same arithmetic for agents and for the planner."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.paging import PAGE_TOKENS, n_pages_for, page_elements

__all__ = ["KvShape", "pool_pages"]


class KvShape(NamedTuple):
    """Sizes of one member's KV pool; `n_groups` counts its (layer, group) pairs."""

    n_groups: int
    head_dim: int
    dtype: npt.DTypeLike
    context_tokens: int
    kv_tokens: int
    n_contexts: int

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of one group: keys and values of 64 tokens."""
        return page_elements(self.head_dim, self.dtype) * np.dtype(self.dtype).itemsize

    @property
    def pool_bytes(self) -> int:
        """Bytes of the whole pool."""
        return self.n_groups * self.page_bytes * pool_pages(self)


def pool_pages(shape: KvShape) -> int:
    """Return the pages per group that hold kv_tokens tokens, however contexts share them out."""
    worst = (shape.kv_tokens + (PAGE_TOKENS - 1) * shape.n_contexts) // PAGE_TOKENS
    return max(1, min(worst, shape.n_contexts * n_pages_for(shape.context_tokens)))
