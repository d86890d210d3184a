"""Rows of a KV pool that say which write they are: written and read as the kernels do it."""

import numpy as np
import numpy.typing as npt

from agent.ids import KvId
from agent.kv import KvPool

U16 = npt.NDArray[np.uint16]

P, D = 64, 2


def rows_of(stamps: list[int], layer: int, group: int) -> U16:
    """Return K and V of rows, (n, 2 D): which write, which group."""
    rows = np.zeros((len(stamps), 2 * D), np.uint16)
    rows[:, 0] = np.array(stamps, np.uint32) & 0xFFFF
    rows[:, 1], rows[:, 2], rows[:, 3] = layer, group, rows[:, 0] ^ 0x5A5A
    return rows


def k_and_v(pool: KvPool) -> tuple[U16, U16]:
    """Return views of all pages, (page, p / 8, d, 8) and (page, p, d), as in kernels/paging.py."""
    size, n = P * D, len(pool.pages)
    k = pool.pages[:, :size].reshape(n, P // 8, D, 8)
    return k, pool.pages[:, size : 2 * size].reshape(n, P, D)


def write_rows(pool: KvPool, kv_id: KvId, group: int, first: int, rows: U16) -> None:
    """Write rows from `first` on, as a kernel would."""
    k, v = k_and_v(pool)
    numbers = pool.pages_of(kv_id)[group]
    for pos in range(first, len(rows)):
        page, p = numbers[pos // P], pos % P
        k[page, p // 8, :, p % 8], v[page, p] = rows[pos, :D], rows[pos, D:]


def read_rows(pool: KvPool, kv_id: KvId, group: int, n_tokens: int) -> U16:
    """Return the first rows of a group, (n_tokens, 2 D)."""
    k, v = k_and_v(pool)
    numbers = pool.pages_of(kv_id)[group, : -(-n_tokens // P)]
    keys = k[numbers].transpose(0, 1, 3, 2).reshape(-1, D)
    return np.concatenate([keys, v[numbers].reshape(-1, D)], axis=1)[:n_tokens]
