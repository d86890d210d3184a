import numpy as np
import pytest

from kernels.layout import TILE_BYTES, WeightFormat, matrix_bytes
from kernels.tiles import pack_matrix, unpack_matrix, unpack_row

SHAPES = [(1, 1), (8, 32), (9, 33), (24, 100), (131, 40)]
FORMATS = list(WeightFormat)


def random_matrix(n_rows: int, n_k: int) -> np.ndarray:
    rng = np.random.default_rng(n_rows * 1000 + n_k)
    return rng.standard_normal((n_rows, n_k)).astype(np.float32)


def quantised(row: np.ndarray, fmt: WeightFormat) -> np.ndarray:
    """The rule of one block of at most 32 weights, in plain words."""
    if fmt == WeightFormat.F32:
        return row
    if fmt == WeightFormat.F16:
        return row.astype(np.float16).astype(np.float32)
    if fmt == WeightFormat.Q8:
        scale = np.float16(np.max(np.abs(row)) / np.float32(127))
        if scale == 0:
            return np.zeros_like(row)
        return np.clip(np.rint(row / np.float32(scale)), -127, 127) * np.float32(scale)
    largest = row[np.argmax(np.abs(row))]
    d = largest / np.float32(-8)
    if d == 0:
        return np.zeros_like(row)
    n = np.clip(np.floor(row * (np.float32(1) / d) + np.float32(8.5)), 0, 15)
    return (n - 8).astype(np.float32) * np.float32(np.float16(d))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pack_follows_the_rule_of_each_block(fmt: WeightFormat, shape: tuple[int, int]) -> None:
    w = random_matrix(*shape)
    w[0] = 0
    blob = pack_matrix(w, fmt)
    assert blob.shape == (matrix_bytes(*shape, fmt),)
    assert blob.dtype == np.uint8
    expected = np.empty_like(w)
    for row in range(shape[0]):
        for k in range(0, shape[1], 32):
            expected[row, k : k + 32] = quantised(w[row, k : k + 32], fmt)
    np.testing.assert_array_equal(unpack_matrix(blob, *shape, fmt), expected)


@pytest.mark.parametrize("fmt", FORMATS)
def test_unpack_row_equals_unpack_matrix(fmt: WeightFormat) -> None:
    w = random_matrix(131, 40)
    blob = pack_matrix(w, fmt)
    whole = unpack_matrix(blob, 131, 40, fmt)
    out = np.empty(40, np.float32)
    for row in (0, 7, 8, 130):
        unpack_row(blob, row, 40, fmt, out)
        np.testing.assert_array_equal(out, whole[row])


@pytest.mark.parametrize("fmt", [WeightFormat.F32, WeightFormat.F16])
def test_plain_tiles_store_k_by_row(fmt: WeightFormat) -> None:
    w = np.arange(16 * 64, dtype=np.float32).reshape(16, 64)
    tiles = pack_matrix(w, fmt).view(np.float32 if fmt == WeightFormat.F32 else np.float16)
    tiles = tiles.reshape(2, 2, 32, 8)  # [row tile][k tile][k][row]
    assert tiles[1, 0, 5, 3] == w[11, 5]
    assert tiles[0, 1, 31, 7] == w[7, 63]


def test_q8_tile_bytes() -> None:
    w = np.zeros((8, 32), np.float32)
    w[3, 6] = -127.0
    w[3, 0] = 5.0
    tile = pack_matrix(w, WeightFormat.Q8)
    q = tile[:256].view(np.int8).reshape(8, 8, 4)  # [k / 4][row][k % 4]
    assert q[1, 3, 2] == -127
    assert q[0, 3, 0] == 5
    assert tile[256:].view(np.float16).tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


def test_q4_tile_bytes() -> None:
    w = np.zeros((8, 32), np.float32)
    w[2, 6] = -8.0  # low nibble of b[1][2][2]
    w[2, 23] = 3.0  # high nibble of b[1][2][3]: k = 16 + 4 + 3
    tile = pack_matrix(w, WeightFormat.Q4)
    b = tile[:128].reshape(4, 8, 4)
    assert b[1, 2, 2] == 0x80
    assert b[1, 2, 3] == 0xB8
    assert b[0, 0, 0] == 0x88
    assert tile[128:].view(np.float16)[2] == 1


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pack_refuses_what_is_not_finite(fmt: WeightFormat, bad: float) -> None:
    w = random_matrix(9, 33)
    w[8, 32] = bad
    with pytest.raises(ValueError, match=r"shape \(9, 33\) holds NaN or infinity"):
        pack_matrix(w, fmt)


def test_pack_refuses_weights_beyond_the_format() -> None:
    w = np.full((8, 32), 70_000, np.float32)
    with pytest.raises(ValueError, match="magnitude 70000 does not fit format F16"):
        pack_matrix(w, WeightFormat.F16)
    pack_matrix(w, WeightFormat.Q8)
    with pytest.raises(ValueError, match="does not fit format Q4"):
        pack_matrix(w * 10, WeightFormat.Q4)


def test_pack_and_unpack_refuse_wrong_arrays() -> None:
    with pytest.raises(ValueError, match="float64 of shape"):
        pack_matrix(np.zeros((8, 32)), WeightFormat.F32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs 144 bytes, got 100"):
        unpack_matrix(np.zeros(100, np.uint8), 8, 32, WeightFormat.Q4)
    blob = np.zeros(TILE_BYTES[WeightFormat.Q4], np.uint8)
    with pytest.raises(ValueError, match="row 8 of 32 Q4 inputs lies outside 144 bytes"):
        unpack_row(blob, 8, 32, WeightFormat.Q4, np.empty(32, np.float32))
    floats = np.empty(64, np.float32)
    for out in (floats[:40], floats[:32].reshape(1, 32), floats[::2]):
        with pytest.raises(ValueError, match="needs a C-contiguous float32 array of as many"):
            unpack_row(blob, 0, 32, WeightFormat.Q4, out)
    with pytest.raises(ValueError, match="got float64 of shape"):
        unpack_row(blob, 0, 32, WeightFormat.Q4, np.empty(32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of 4 bytes, got 145"):
        unpack_row(np.zeros(145, np.uint8), 0, 32, WeightFormat.Q4, np.empty(32, np.float32))
