"""How kernels name pieces of flat arrays, so that nothing is sliced in hot loops."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.jit import merged

__all__ = ["F32Array", "Matrix", "Rows", "Span", "row_of", "share"]

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


class Matrix(NamedTuple):
    """A tiled matrix inside the store.

    Attributes:
        w: the whole store as elements of `weight_dtype`.
        first: element where the matrix starts.
        tile_size: elements of one tile.
        k_tiles: tiles per row tile.
        n_out: real rows; the last row tile may hold fewer than 8.
        following: element that the thread reads next after its part of the matrix, for prefetch;
            negative: what lies behind it.
        following_step: elements between the places where streams read on there, see `matvec`.
    """

    w: npt.NDArray[Any]
    first: int
    tile_size: int
    k_tiles: int
    n_out: int
    following: int
    following_step: int


@merged
def row_of(rows: Rows, i: int, skip: int) -> Span:
    """Return row i from its element `skip` on."""
    return Span(rows.values, rows.first + i * rows.stride + skip)


@merged
def share(n: int, tid: int, n_threads: int) -> tuple[int, int]:
    """Return the contiguous part [start, stop) of n units that thread tid works on."""
    return n * tid // n_threads, n * (tid + 1) // n_threads
