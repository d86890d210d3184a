"""The canonical layout of KV pages.

A page holds PAGE_TOKENS positions of one (layer, group): K, then V, one row of the pool
`pages: (n_pages, page_elements)`, float16 bits (uint16) or float32:

    K  [position / 8][d][8]    element of (p, j): (p // 8 * d + j) * 8 + p % 8
    V  [position][d]           element of (p, j): PAGE_TOKENS * d + p * d + j

p counts from the page's first position. 8 positions of K lie side by side, so that a score is
one lane and nothing is ever summed across lanes.
"""

__all__ = ["PAGE_TOKENS", "n_pages_for", "page_elements"]

PAGE_TOKENS = 64


def page_elements(head_dim: int) -> int:
    """Return the elements of one page, K and V together."""
    return 2 * PAGE_TOKENS * head_dim


def n_pages_for(n_tokens: int) -> int:
    """Return the pages that n_tokens positions of one (layer, group) need."""
    return -(-n_tokens // PAGE_TOKENS)
