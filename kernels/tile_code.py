"""LLVM IR of the products in `simd_tile`: which instructions multiply tiles by rows.

Totals are IR vectors in the order [tile][row], of 16 lanes where two tiles share one. The code is
straight, or one loop over inputs; float additions are in the order of rising inputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir

from kernels import emit
from kernels.emit import I32, I64, VNNI
from kernels.lowering import F32X8, I32X8, cgutils

__all__ = [
    "Columns",
    "column_products",
    "dequantised_products",
    "integer_products",
    "panel_products",
    "unpack_columns",
]

F32 = ir.FloatType()
# A quantised block: 32 bytes, the scale, and where sums of q8 and q4 start, 4 bytes each.
SCALE_BYTE, ORIGIN_Q8_BYTE, ORIGIN_Q4_BYTE = 32, 36, 40


def _paired(builder: Any, totals: list[Any], vectors: list[Any]) -> list[Any]:
    """Return vectors of 8 lanes, one a tile, in the width of totals."""
    if totals[0].type.count == 8:
        return vectors
    pairs = zip(vectors[::2], vectors[1::2], strict=True)
    return [emit.joined(builder, a, b) for a, b in pairs]


def integer_products(
    builder: Any, is_q8: bool, tiles: list[Any], rows: list[Any], totals: list[Any]
) -> list[Any]:
    """Return totals + integer products of one q8 or q4 tile each, times both scales.

    Args:
        builder: at the place of the code.
        is_q8: the format of the tiles, else q4.
        tiles: pointers to tiles.
        rows: pointers to quantised blocks.
        totals: vectors of float32.
    """
    f32s = totals[0].type
    i32s = ir.VectorType(I32, f32s.count)
    factors = _factors(builder, is_q8, tiles, totals)
    scales = _paired(builder, totals, _scales(builder, is_q8, tiles))
    # Two chains overlap where there is one row; with VNNI, high nibbles have one of their own.
    n_chains = 2 if len(rows) == 1 or (VNNI and not is_q8) else 1
    sums = []
    for j in range(len(totals)):
        start = emit.constant(i32s, 0)
        if VNNI or not is_q8:
            skip = ORIGIN_Q8_BYTE if is_q8 else ORIGIN_Q4_BYTE
            start = emit.splat(builder, emit.load(builder, rows[j % len(rows)], I32, skip), i32s)
        sums.append([start, emit.constant(i32s, 0)])
    for k4 in range(8):
        for r, row in enumerate(rows):
            x = emit.splat(builder, emit.load(builder, row, I32, 4 * k4), i32s)
            for a, factor in enumerate(factors):
                chains, at = sums[a * len(rows) + r], k4 * n_chains // 8
                chains[at] = emit.dot4(builder, chains[at], factor[k4], x, not is_q8)
    results = []
    for j, (total, second) in enumerate(sums):
        if VNNI and not is_q8:
            second = builder.ashr(second, emit.constant(i32s, 4))
        if n_chains == 2:
            total = builder.add(total, second)
        scaled = builder.fmul(builder.sitofp(total, f32s), scales[j // len(rows)])
        scale = emit.load(builder, rows[j % len(rows)], F32, SCALE_BYTE)
        scale = emit.splat(builder, scale, f32s)
        results.append(emit.multiply_add(builder, scaled, scale, totals[j]))
    return results


def _factors(builder: Any, is_q8: bool, tiles: list[Any], totals: list[Any]) -> list[list[Any]]:
    """Return 8 left factors of `dot4`, 4 inputs each, for every tile or pair of tiles."""
    by_word = [
        _paired(builder, totals, [emit.load(builder, tile, I32X8, 32 * j) for tile in tiles])
        for j in range(8 if is_q8 else 4)
    ]
    per_tile = [list(words) for words in zip(*by_word, strict=True)]
    if is_q8:
        return [[_shifted(builder, word) for word in words] for words in per_tile]
    return [_nibbles(builder, words) for words in per_tile]


def _shifted(builder: Any, word: Any) -> Any:
    """Return signed bytes, + 128 where they have to be unsigned."""
    return builder.xor(word, emit.constant(word.type, -0x7F7F7F80)) if VNNI else word


def _nibbles(builder: Any, words: list[Any]) -> list[Any]:
    """Return low, then high nibbles; with VNNI the high ones stay 16 times as large."""
    vector = words[0].type
    mask = emit.constant(vector, 0x0F0F0F0F)
    low = [builder.and_(word, mask) for word in words]
    if VNNI:
        high = emit.constant(vector, 0xF0F0F0F0 - (1 << 32))
        return low + [builder.and_(word, high) for word in words]
    shift = emit.constant(vector, 4)
    return low + [builder.and_(builder.lshr(word, shift), mask) for word in words]


def _add_in_loop(
    builder: Any,
    n: Any,
    totals: list[Any],
    terms: Callable[[Any], list[tuple[list[Any], list[Any]]]],
) -> list[Any]:
    """Return totals + column * x for what `terms` says for each loop index below n, in order.

    Terms are pairs of columns, one a total's tile, and of float32 values, one a row.
    """
    slots = [cgutils.alloca_once_value(builder, total) for total in totals]
    for slot, total in zip(slots, totals, strict=True):
        builder.store(total, slot)  # the slot's own first value is set only once a call
    with cgutils.for_range(builder, n) as loop:
        for columns, values in terms(loop.index):
            xs = [emit.splat(builder, value, totals[0].type) for value in values]
            for j, slot in enumerate(slots):
                a, r = divmod(j, len(xs))
                total = emit.multiply_add(builder, columns[a], xs[r], builder.load(slot))
                builder.store(total, slot)
    return [builder.load(slot) for slot in slots]


class Columns(NamedTuple):
    """Columns of 8 weights, one for each input.

    Attributes:
        first: pointers to the first column of every tile.
        step_bytes: from one input's column to the next one's.
        item_bytes: of a weight: 4 = float32, 2 = float16, 1 = int8.
        ahead: pointer to memory to ask for, if any.
        ahead_bytes: from what is asked for with one input to that with the next.
    """

    first: list[Any]
    step_bytes: Any
    item_bytes: int
    ahead: Any = None
    ahead_bytes: Any = None


def column_products(
    builder: Any, columns: Columns, n_inputs: Any, rows: list[Any], totals: list[Any]
) -> list[Any]:
    """Return totals + columns times inputs; rows are pointers to n_inputs float32 each."""

    def terms(k: Any) -> list[tuple[list[Any], list[Any]]]:
        skip = builder.mul(k, columns.step_bytes)
        read = {4: _floats, 2: emit.from_halves, 1: emit.from_bytes}[columns.item_bytes]
        vectors = _paired(builder, totals, [read(builder, tile, skip) for tile in columns.first])
        at = builder.mul(k, I64(4))
        if columns.ahead is not None:
            emit.prefetch(builder, columns.ahead, builder.mul(k, columns.ahead_bytes))
        return [(vectors, [emit.load(builder, row, F32, at) for row in rows])]

    return _add_in_loop(builder, n_inputs, totals, terms)


def _floats(builder: Any, pointer: Any, skip_bytes: Any) -> Any:
    return emit.load(builder, pointer, F32X8, skip_bytes)


def dequantised_products(
    builder: Any, is_q8: bool, tiles: list[Any], rows: list[Any], totals: list[Any]
) -> list[Any]:
    """Return totals + exact weights of one q8 or q4 tile each times 32 float32 inputs."""
    scales = _scales(builder, is_q8, tiles)

    def terms(k4: Any) -> list[tuple[list[Any], list[Any]]]:
        per_tile = []
        for tile, scale in zip(tiles, scales, strict=True):
            numbers = (_four_q8 if is_q8 else _four_q4)(builder, tile, k4)
            per_tile.append([builder.fmul(number, scale) for number in numbers])
        found = []
        for k in range(4):
            columns = _paired(builder, totals, [weights[k] for weights in per_tile])
            at = builder.add(builder.mul(k4, I64(16)), I64(4 * k))
            found.append((columns, [emit.load(builder, row, F32, at) for row in rows]))
        return found

    return _add_in_loop(builder, I64(8), totals, terms)


def _scales(builder: Any, is_q8: bool, tiles: list[Any]) -> list[Any]:
    return [emit.from_halves(builder, tile, 256 if is_q8 else 128) for tile in tiles]


def unpack_columns(builder: Any, dtype: str, tiles: list[Any], panel: Any) -> None:
    """Write a panel: for each of 32 inputs in turn, the exact weights of all tiles as float32.

    dtype: of the store, one with float32 activations.
    """

    def put(k: Any, a: int, vector: Any) -> None:
        at = builder.add(builder.mul(k, I64(32 * len(tiles))), I64(32 * a))
        emit.store(builder, vector, panel, at)

    if dtype in ("float32", "uint16"):
        item_bytes, read = (4, _floats) if dtype == "float32" else (2, emit.from_halves)
        with cgutils.for_range(builder, I64(32)) as loop:
            skip = builder.mul(loop.index, I64(8 * item_bytes))
            for a, tile in enumerate(tiles):
                put(loop.index, a, read(builder, tile, skip))
        return
    four = _four_q8 if dtype == "int32" else _four_q4
    scales = _scales(builder, dtype == "int32", tiles)
    with cgutils.for_range(builder, I64(8)) as loop:
        for a, (tile, scale) in enumerate(zip(tiles, scales, strict=True)):
            for j, number in enumerate(four(builder, tile, loop.index)):
                k = builder.add(builder.mul(loop.index, I64(4)), I64(j))
                put(k, a, builder.fmul(number, scale))


def panel_products(
    builder: Any, panel: Any, n_inputs: Any, rows: list[Any], totals: list[Any], ahead: Any,
    ahead_bytes: Any,
) -> list[Any]:  # fmt: skip
    """Return totals + the columns of a panel times inputs; pointers as for `column_products`."""
    vector = totals[0].type
    n_vectors = len(totals) // len(rows)

    def terms(k: Any) -> list[tuple[list[Any], list[Any]]]:
        at = builder.mul(k, I64(4 * vector.count * n_vectors))
        places = [builder.add(at, I64(4 * vector.count * j)) for j in range(n_vectors)]
        columns = [emit.load(builder, panel, vector, place) for place in places]
        skip = builder.mul(k, I64(4))
        emit.prefetch(builder, ahead, builder.mul(k, ahead_bytes))
        return [(columns, [emit.load(builder, row, F32, skip) for row in rows])]

    return _add_in_loop(builder, n_inputs, totals, terms)


def _four_q8(builder: Any, tile: Any, k4: Any) -> list[Any]:
    """Return the whole numbers of inputs 4 * k4 .. 4 * k4 + 3."""
    words = emit.load(builder, tile, I32X8, builder.mul(k4, I64(32)))
    return [builder.sitofp(emit.byte_of(builder, words, k), F32X8) for k in range(4)]


def _four_q4(builder: Any, tile: Any, k4: Any) -> list[Any]:
    skip = builder.mul(builder.and_(k4, I64(3)), I64(32))
    words = emit.load(builder, tile, I32X8, skip)
    shift = builder.and_(k4, I64(4))  # 4 for the inputs of high nibbles
    words = builder.lshr(words, emit.splat(builder, builder.trunc(shift, I32), I32X8))
    nibbles = [builder.and_(builder.lshr(words, emit.ints(8 * k)), emit.ints(15)) for k in range(4)]
    return [builder.sitofp(builder.sub(n, emit.ints(8)), F32X8) for n in nibbles]
