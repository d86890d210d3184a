import numpy as np
import pytest

from kernels.errors import InputError
from kernels.exchange import add_partials, encode_flat
from kernels.jit import JIT_DISABLED
from kernels.wire_floats import decode_f16, encode_f16


def some_halves() -> np.ndarray:
    """All float16 bits under JIT, a spread that meets every exponent without it."""
    bits = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    return bits[::61].copy() if JIT_DISABLED else bits


def test_decode_is_exact() -> None:
    bits = some_halves()
    out = np.empty(bits.size, np.float32)
    decode_f16(bits, out)
    with np.errstate(invalid="ignore"):  # signalling NaN: ARM says so, x86 does not
        exact = bits.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(out, exact)


def test_encode_returns_what_decode_took() -> None:
    bits = some_halves()
    bits = bits[~np.isnan(bits.view(np.float16))]
    out = np.empty_like(bits)
    encode_f16(bits.view(np.float16).astype(np.float32), out)
    np.testing.assert_array_equal(out, bits)


def test_encode_rounds_to_nearest_even() -> None:
    rng = np.random.default_rng(0)
    n = 300 if JIT_DISABLED else 100_000
    x = (rng.standard_normal(n) * 10.0 ** rng.integers(-9, 7, n)).astype(np.float32)
    halves = np.linspace(0, 65504, 500).astype(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    special = [0.0, -0.0, np.inf, -np.inf, 65519.99, 65520, -65520, 2**-25, 2**-24, 6.1e-5, 1e-40]
    x = np.concatenate([x, ties, np.array(special, np.float32)])
    out = np.empty(x.size, np.uint16)
    encode_f16(x, out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, x.astype(np.float16).view(np.uint16))


def test_nan_stays_nan() -> None:
    out = np.empty(2, np.uint16)
    encode_f16(np.array([np.nan, -np.nan], np.float32), out)
    assert np.isnan(out.view(np.float16)).all()


def test_wrong_arrays_are_refused() -> None:
    residual, half = np.zeros((2, 40), np.float32), np.zeros((2, 40), np.uint16)
    with pytest.raises(InputError, match="expected 80 contiguous, aligned float32 values"):
        encode_f16(np.zeros((1, 40), np.float32), half)
    with pytest.raises(InputError, match="got float64 of shape"):
        encode_f16(np.zeros((2, 40)), half)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="writable"):
        decode_f16(half[:, ::2].copy(), residual[:, ::2])
    with pytest.raises(InputError, match="uint16"):
        encode_f16(residual, residual)  # type: ignore[arg-type]
    unaligned = np.zeros(81 * 4, np.uint8)[1:321].view(np.float32)
    with pytest.raises(InputError, match="aligned"):
        encode_f16(unaligned, half)


def test_encode_flat_equals_encode() -> None:
    x = np.random.default_rng(3).standard_normal(40).astype(np.float32)
    out = np.zeros((2, 40), np.uint16)
    encode_flat(x, out[0])
    encode_f16(x, out[1])
    np.testing.assert_array_equal(out[0], out[1])


def any_number(n: int) -> np.ndarray:
    """Limits that every finite number keeps."""
    return np.full(n, np.finfo(np.float32).max, np.float32)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_partials_are_added_in_the_order_of_their_slots(dtype: type) -> None:
    rng = np.random.default_rng(5)
    n, first = 67, 4
    inbox32 = rng.standard_normal((4, first + n + 3)).astype(np.float32)
    inbox = inbox32 if dtype is np.float32 else inbox32.astype(np.float16).view(np.uint16)
    values = inbox32 if dtype is np.float32 else inbox.view(np.float16).astype(np.float32)
    slots = np.array([2, 0, 3], np.int32)
    residual = rng.standard_normal(n).astype(np.float32)
    wanted = residual.copy()
    for slot in slots:
        wanted = wanted + values[slot, first : first + n]
    assert add_partials(residual, inbox, slots, first, any_number(3)) == 3
    np.testing.assert_array_equal(residual, wanted)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_the_first_member_with_a_bad_value_is_named(dtype: type, bad: float) -> None:
    inbox32 = np.ones((3, 9), np.float32)
    inbox32[1, 8] = bad
    inbox = inbox32 if dtype is np.float32 else inbox32.astype(np.float16).view(np.uint16)
    slots = np.array([0, 1, 2], np.int32)
    assert add_partials(np.zeros(8, np.float32), inbox, slots, 1, any_number(3)) == 1
    assert add_partials(np.zeros(7, np.float32), inbox, slots, 1, any_number(3)) == 3


def test_a_sum_that_overflows_is_found() -> None:
    inbox = np.full((2, 4), 3e38, np.float32)
    with np.errstate(over="ignore"):
        slots = np.array([0, 1], np.int32)
        assert add_partials(np.zeros(4, np.float32), inbox, slots, 0, any_number(2)) == 1


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize(("value", "n_added"), [(2.0, 3), (-2.0, 3), (2.002, 1), (-2.002, 1)])
def test_a_member_is_held_to_its_own_limit(dtype: type, value: float, n_added: int) -> None:
    inbox32 = np.full((3, 9), 100, np.float32)
    inbox32[2] = value
    inbox = inbox32 if dtype is np.float32 else inbox32.astype(np.float16).view(np.uint16)
    limits = any_number(3)
    limits[1] = 2.0
    slots = np.array([0, 2, 1], np.int32)
    assert add_partials(np.zeros(9, np.float32), inbox, slots, 0, limits) == n_added
