"""One row of a packed matrix as float32: the embedding that a token waits for.

By the formulas of `tiles`, whose NumPy takes a dozen calls for a row: their code is cold when a
token has just been written, and took 80 us.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.half import from_half
from kernels.jit import inner, kernel
from kernels.layout import TILE_BYTES, TILE_K, TILE_ROWS, WeightFormat

__all__ = ["unpack_lane"]

_F32, _F16, _Q8, _Q4 = (int(fmt) for fmt in WeightFormat)
_Q8_BYTES, _Q4_BYTES = TILE_BYTES[WeightFormat.Q8], TILE_BYTES[WeightFormat.Q4]
_SCALE_BYTES = 2 * TILE_ROWS


@kernel
def unpack_lane(
    blob: npt.NDArray[np.uint8], first: int, lane: int, fmt: int, out: npt.NDArray[np.float32]
) -> None:
    """Write one row of a row tile; nothing is checked, see `tiles.unpack_row`.

    Args:
        blob: (n,) uint8, the packed matrix.
        first: byte where the row tile starts.
        lane: which of its 8 rows.
        fmt: a WeightFormat; nothing is written for another number.
        out: (n_k,) float32, written.
    """
    if fmt == _F32:
        floats = blob.view(np.float32)
        for k in range(out.size):
            out[k] = floats[first // 4 + k * TILE_ROWS + lane]
    elif fmt == _F16:
        halves = blob.view(np.uint16)
        for k in range(out.size):
            out[k] = from_half(halves[first // 2 + k * TILE_ROWS + lane])
    elif fmt == _Q8 or fmt == _Q4:
        _unpack_codes(blob, first, lane, fmt == _Q8, out)


@inner
def _unpack_codes(blob: Any, first: int, lane: int, is_q8: bool, out: Any) -> None:
    """Do it for integers and their scales."""
    halves = blob.view(np.uint16)
    tile_bytes = _Q8_BYTES if is_q8 else _Q4_BYTES
    n_per_byte = 1 if is_q8 else 2
    for start in range(0, out.size, TILE_K):
        tile = first + start // TILE_K * tile_bytes
        scale = from_half(halves[(tile + tile_bytes - _SCALE_BYTES) // 2 + lane])
        for k in range(start, min(start + TILE_K, out.size)):
            i = (k - start) % (TILE_K // n_per_byte)
            code = blob[tile + (i // 4 * TILE_ROWS + lane) * 4 + i % 4]
            if is_q8:
                value = np.int64(np.int8(code))
            else:  # inputs 16 to 31 are the high nibbles
                value = np.int64(code >> 4 if k - start >= TILE_K // 2 else code & 15) - 8
            out[k] = np.float32(np.float32(value) * scale)
