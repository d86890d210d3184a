"""How kernels name a piece of a flat float32 array, so that nothing is sliced in hot loops."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.jit import merged

__all__ = ["F32Array", "Rows", "Span", "row_of", "share"]

F32Array = npt.NDArray[np.float32]


class Span(NamedTuple):
    """The elements of a flat array from `first` on; the reader knows how many."""

    values: F32Array
    first: int


class Rows(NamedTuple):
    """Rows of activations inside a flat array: row i starts at element first + i * stride."""

    values: F32Array
    first: int
    stride: int


@merged
def row_of(rows: Rows, i: int, skip: int) -> Span:
    """Return row i from its element `skip` on."""
    return Span(rows.values, rows.first + i * rows.stride + skip)


@merged
def share(n: int, tid: int, n_threads: int) -> tuple[int, int]:
    """Return the contiguous part [start, stop) of n units that thread tid works on."""
    return n * tid // n_threads, n * (tid + 1) // n_threads
