"""The rows of a step: which context and position each has, checked, with its rotation.

row i: slot (first index of the page table), position; pages of positions 0 .. position exist
"""

import numpy as np
import numpy.typing as npt

from kernels import tables as at
from kernels.jit import kernel
from kernels.paging import PAGE_TOKENS
from kernels.rope import rotation_row
from kernels.spans import F32Array, Span

__all__ = ["prepare_rows"]

I32Array = npt.NDArray[np.int32]


@kernel
def prepare_rows(
    slots: I32Array, positions: I32Array, n_rows: int, context_tokens: int,
    inv_freq: npt.NDArray[np.float64], factor: float, n_pages: int, page_table: I32Array,
    table: npt.NDArray[np.int64], scratch: F32Array,
) -> int:  # fmt: skip
    """Enter the rows into the table and their rotations into scratch.

    Returns:
        -1, or the first row whose slot, position or pages are out of range.
    """
    checked_slot, checked_pages = -1, 0
    for row in range(n_rows):
        slot, position = slots[row], positions[row]
        if not (0 <= slot < page_table.shape[0] and 0 <= position < context_tokens):
            return row
        used = position // PAGE_TOKENS + 1
        if slot != checked_slot or used > checked_pages:  # rows of one context come in runs
            for group in range(page_table.shape[1]):
                for i in range(used):
                    if not 0 <= page_table[slot, group, i] < n_pages:
                        return row
            checked_slot, checked_pages = slot, used
        table[table[at.SLOTS] + row] = slot
        table[table[at.POSITIONS] + row] = position
        turn = Span(scratch, table[at.TURNS] + row * table[at.HEAD_DIM])
        rotation_row(inv_freq, position, factor, turn)
    return -1
