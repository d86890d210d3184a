"""What a benchmark makes of its samples: medians, refusals, tables."""

import csv
import io

import msgspec
import pytest

from kernels.errors import HeadwiseError, UsageError
from tools.bench import make_cases
from tools.bench_rows import (
    Case,
    Row,
    Sample,
    check_fractions,
    csv_table,
    is_resident,
    md_table,
    summarise,
)

L3_BYTES = 32 << 20
LARGE_BYTES = 1 << 30
CASE = Case("tg", 16, "q8", 256, 4)


def row(fraction: float = 0.9, weights_bytes: int = LARGE_BYTES) -> Row:
    samples = [Sample(2.0, int(2e9 * fraction), 1e9)]
    return summarise(CASE, samples, weights_bytes, L3_BYTES)


def test_every_combination_is_a_case_and_lengths_of_0_are_none() -> None:
    cases = make_cases((0, 512), (128,), ("q8", "q4"), (0, 256), (1, 2, 4))
    assert len(cases) == len(set(cases)) == 2 * 2 * 2 * 3
    assert {case.test for case in cases} == {"pp512", "tg128"}
    with pytest.raises(UsageError, match="nothing to measure"):
        make_cases((0,), (0,), ("q8",), (0,), (1,))


def test_a_row_holds_medians_of_its_repeats() -> None:
    # 8, 4 and 16 tokens a second; the bandwidth of one repeat says nothing about another's.
    samples = [Sample(2.0, 8, 10.0), Sample(4.0, 8, 4.0), Sample(1.0, 8, 8.0)]
    made = summarise(CASE, samples, LARGE_BYTES, L3_BYTES)
    assert (made.test, made.dtype, made.depth, made.threads) == ("tg16", "q8", 256, 4)
    assert made.tokens_per_s == 8
    assert made.repeats_tokens_per_s == (8, 4, 16)
    assert made.spread == (16 - 4) / 8
    assert made.bytes_per_s == 4
    assert made.bandwidth_bytes_per_s == 8
    assert made.bandwidth_fraction == 0.5
    assert not made.cache_resident


def test_a_model_of_four_caches_may_still_be_in_there() -> None:
    assert is_resident(4 * L3_BYTES, L3_BYTES)
    assert not is_resident(4 * L3_BYTES + 1, L3_BYTES)


def test_reading_faster_than_memory_is_refused() -> None:
    check_fractions([row(0.3), row(1.0), row(1.05)])
    with pytest.raises(HeadwiseError, match=r"error of measurement: tg16 q8 .* 1\.06 times"):
        check_fractions([row(0.9), row(1.06)])


def test_models_in_the_cache_may_be_read_faster_than_memory() -> None:
    check_fractions([row(7.0, weights_bytes=4 * L3_BYTES)])


def test_the_markdown_table_has_a_line_for_each_row() -> None:
    lines = md_table([row(), row(2.0, weights_bytes=1000)]).splitlines()
    assert len(lines) == 4
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:5] == ["test", "dtype", "depth", "threads", "tokens/s"]
    assert cells[2] == ["tg16", "q8", "256", "4", "8.00", "0 %", "0.90", "0.90"]
    assert cells[3][-1] == "2.00 (cache)"
    assert len({len(line) for line in lines}) == 1


def test_csv_reads_back() -> None:
    (read,) = csv.DictReader(io.StringIO(csv_table([row()])))
    assert read["test"] == "tg16"
    assert read["cache_resident"] == "false"
    assert float(read["tokens_per_s"]) == 8
    fields = set(msgspec.to_builtins(row())) - {"repeats_tokens_per_s"}
    assert set(read) == fields
