"""The canonical layout of KV pages.

A page holds PAGE_TOKENS positions of one (layer, group): K, then V, one row of the pool
`pages: (n_pages, page_elements)`, float16 bits (uint16), float32, or bytes (int8):

    K  [position / 8][d][8]    element of (p, j): (p // 8 * d + j) * 8 + p % 8
    V  [position][d]           element of (p, j): PAGE_TOKENS * d + p * d + j

and behind them, if they are bytes, the float32 scales that they are to be times:

    of K  [position]           byte of p: 2 * PAGE_TOKENS * d + 4 * p
    of V  [position]           byte of p: 2 * PAGE_TOKENS * d + 4 * (PAGE_TOKENS + p)

p counts from the page's first position. 8 positions of K lie side by side, so that a score is
one lane and nothing is ever summed across lanes. A page is whole in itself: to move or copy it
takes no knowledge of its format.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["PAGE_DTYPES", "PAGE_TOKENS", "n_pages_for", "page_elements"]

PAGE_TOKENS = 64

# What a page's elements are, by the name that plans give its format.
PAGE_DTYPES: dict[str, type[np.generic]] = {
    "f16": np.uint16,
    "f32": np.float32,
    "int8": np.int8,
}


def page_elements(head_dim: int, dtype: npt.DTypeLike) -> int:
    """Return the elements of one page, K and V together, with the scales of bytes."""
    n_scale_bytes = 2 * PAGE_TOKENS * 4 if np.dtype(dtype) == np.int8 else 0
    return 2 * PAGE_TOKENS * head_dim + n_scale_bytes


def n_pages_for(n_tokens: int) -> int:
    """Return the pages that n_tokens positions of one (layer, group) need."""
    return -(-n_tokens // PAGE_TOKENS)
