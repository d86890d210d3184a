"""Packs matrices into the canonical tiles of `layout` and back, in NumPy.

Used at conversion, for embedding rows and by tests; the hot path reads tiles in `matvec`.
Does not know atoms: callers place the packed matrices inside blobs.

With t the 32 weights of one row inside one tile:

    q8   scale = f16(max|t| / 127)      q = clip(rint(t / scale), -127, 127)    w = q * scale
    q4   d = t[argmax|t|] / -8          n = clip(floor(t / d + 8.5), 0, 15)     w = (n - 8) * f16(d)
         (GGUF's Q4_0 rule, bit for bit)
"""

import numpy as np
import numpy.typing as npt

from kernels.entries import unpack_lane
from kernels.layout import TILE_BYTES, TILE_K, TILE_ROWS, WeightFormat, matrix_bytes

__all__ = ["pack_matrix", "unpack_matrix", "unpack_row"]

F32Array = npt.NDArray[np.float32]
U8Array = npt.NDArray[np.uint8]

_F16_MAX = 65504.0


def pack_matrix(w: F32Array, fmt: WeightFormat) -> U8Array:
    """Pack a matrix into tiles, padding rows and k with zeros.

    Args:
        w: (n_rows, n_k) float32, finite.
        fmt: how the weights are stored.

    Returns:
        (matrix_bytes,) uint8, freshly allocated.

    Raises:
        ValueError: w is no float32 matrix, holds NaN or infinity, or exceeds the format's range.
    """
    if w.ndim != 2 or w.dtype != np.float32 or w.size == 0:
        raise ValueError(f"expected a float32 matrix, got {w.dtype} of shape {w.shape}")
    largest = float(np.max(np.abs(w)))  # NaN and infinity both survive max
    limit = {WeightFormat.F16: _F16_MAX, WeightFormat.Q8: 127.0, WeightFormat.Q4: 8.0}
    if fmt in (WeightFormat.Q8, WeightFormat.Q4):
        limit[fmt] *= _F16_MAX
    if not np.isfinite(largest):
        raise ValueError(f"the matrix of shape {w.shape} holds NaN or infinity")
    if largest > limit.get(fmt, np.inf):
        raise ValueError(f"a weight of magnitude {largest:.6g} does not fit format {fmt.name}")
    n_rows, n_k = w.shape
    row_tiles, k_tiles = -(-n_rows // TILE_ROWS), -(-n_k // TILE_K)
    padded = np.zeros((row_tiles * TILE_ROWS, k_tiles * TILE_K), np.float32)
    padded[:n_rows, :n_k] = w
    tiles = padded.reshape(row_tiles, TILE_ROWS, k_tiles, TILE_K).transpose(0, 2, 1, 3)
    pack = {WeightFormat.Q8: _pack_q8, WeightFormat.Q4: _pack_q4}.get(fmt)
    if pack is not None:
        return pack(tiles)
    dtype = np.float32 if fmt == WeightFormat.F32 else np.float16
    lanes_last = np.ascontiguousarray(tiles.transpose(0, 1, 3, 2).astype(dtype, copy=False))
    return lanes_last.view(np.uint8).reshape(-1)


def _pack_q8(tiles: F32Array) -> U8Array:
    """Quantise (row_tiles, k_tiles, 8, 32) float32 to q8 tiles."""
    scale = (np.max(np.abs(tiles), axis=3) / np.float32(127)).astype(np.float16)
    safe = np.where(scale == 0, np.float32(1), scale.astype(np.float32))[..., None]
    q = np.clip(np.rint(tiles / safe), -127, 127)
    q[scale == 0] = 0
    out = np.empty((*tiles.shape[:2], TILE_BYTES[WeightFormat.Q8]), np.uint8)
    by_k4 = q.astype(np.int8).reshape(*tiles.shape[:3], 8, 4).transpose(0, 1, 3, 2, 4)
    out[..., :256] = np.ascontiguousarray(by_k4).view(np.uint8).reshape(*tiles.shape[:2], 256)
    out[..., 256:] = np.ascontiguousarray(scale).view(np.uint8)
    return out.reshape(-1)


def _pack_q4(tiles: F32Array) -> U8Array:
    """Quantise (row_tiles, k_tiles, 8, 32) float32 to q4 tiles."""
    where = np.argmax(np.abs(tiles), axis=3)[..., None]
    d = np.take_along_axis(tiles, where, axis=3) / np.float32(-8)
    with np.errstate(over="ignore", divide="ignore"):
        inverse = np.where(np.abs(d) < np.finfo(np.float32).tiny, np.float32(0), 1 / d)
    n = np.clip(np.floor(tiles * inverse + np.float32(8.5)), 0, 15).astype(np.uint8)
    by_half = n.reshape(*tiles.shape[:3], 2, 4, 4)  # [row][half][j][i]
    packed = by_half[:, :, :, 0] | (by_half[:, :, :, 1] << 4)
    out = np.empty((*tiles.shape[:2], TILE_BYTES[WeightFormat.Q4]), np.uint8)
    out[..., :128] = packed.transpose(0, 1, 3, 2, 4).reshape(*tiles.shape[:2], 128)
    out[..., 128:] = np.ascontiguousarray(d[..., 0].astype(np.float16)).view(np.uint8)
    return out.reshape(-1)


def unpack_matrix(blob: U8Array, n_rows: int, n_k: int, fmt: WeightFormat) -> F32Array:
    """Return the exact float32 values of a packed matrix.

    Args:
        blob: (at least matrix_bytes,) uint8, C-contiguous.
        n_rows: real rows.
        n_k: real inputs.
        fmt: how the weights are stored.

    Returns:
        (n_rows, n_k) float32, freshly allocated.

    Raises:
        ValueError: the blob is too short.
    """
    n_bytes = matrix_bytes(n_rows, n_k, fmt)
    if blob.size < n_bytes:
        raise ValueError(
            f"a ({n_rows}, {n_k}) {fmt.name} matrix needs {n_bytes} bytes, got {blob.size}"
        )
    row_tiles, k_tiles = -(-n_rows // TILE_ROWS), -(-n_k // TILE_K)
    tiles = blob[:n_bytes].reshape(row_tiles, k_tiles, TILE_BYTES[fmt])
    values = _unpack_tiles(tiles, fmt)  # (row_tiles, k_tiles, 8, 32)
    full = values.transpose(0, 2, 1, 3).reshape(row_tiles * TILE_ROWS, k_tiles * TILE_K)
    return np.ascontiguousarray(full[:n_rows, :n_k])


def unpack_row(blob: U8Array, row: int, n_k: int, fmt: WeightFormat, out: F32Array) -> None:
    """Write the exact values of one row of a packed matrix into `out`.

    Args:
        blob: the packed matrix, uint8, C-contiguous, at a multiple of 4 bytes.
        row: which row, counted from the matrix start.
        n_k: real inputs.
        fmt: how the weights are stored.
        out: (n_k,) float32, C-contiguous, written.

    Raises:
        ValueError: the row lies outside the blob, or an array is not as said above.
    """
    k_tiles = -(-n_k // TILE_K)
    tile_bytes = TILE_BYTES[fmt]
    start = row // TILE_ROWS * k_tiles * tile_bytes
    stop = start + k_tiles * tile_bytes
    if row < 0 or stop > blob.size:
        raise ValueError(f"row {row} of {n_k} {fmt.name} inputs lies outside {blob.size} bytes")
    if blob.size % 4:
        raise ValueError(f"a packed matrix has a multiple of 4 bytes, got {blob.size}")
    if out.shape != (n_k,) or out.dtype != np.float32 or not out.flags.carray:
        raise ValueError(
            f"a row of {n_k} inputs needs a C-contiguous float32 array of as many, got "
            f"{out.dtype} of shape {out.shape}"
        )
    unpack_lane(blob, start, row % TILE_ROWS, int(fmt), out)


def _unpack_tiles(tiles: U8Array, fmt: WeightFormat) -> F32Array:
    """Dequantise (row_tiles, k_tiles, tile bytes) to (row_tiles, k_tiles, 8, 32) float32."""
    shape = tiles.shape[:2]
    if fmt in (WeightFormat.F32, WeightFormat.F16):
        dtype = np.float32 if fmt == WeightFormat.F32 else np.float16
        plain = tiles.view(dtype).reshape(*shape, TILE_K, TILE_ROWS)
        return plain.transpose(0, 1, 3, 2).astype(np.float32)
    n_code_bytes = 256 if fmt == WeightFormat.Q8 else 128
    codes = tiles[..., :n_code_bytes].reshape(*shape, -1, TILE_ROWS, 4)
    codes = codes.transpose(0, 1, 3, 2, 4)  # [lane][k/4 or j][k%4]
    scale = tiles[..., n_code_bytes:].view(np.float16).astype(np.float32)[..., None]
    if fmt == WeightFormat.Q8:
        signed = codes.astype(np.int8)
    else:
        halves = np.stack((codes & 15, codes >> 4), axis=3)
        signed = halves.astype(np.int8) - np.int8(8)
    return signed.reshape(*shape, -1, TILE_K).astype(np.float32) * scale
