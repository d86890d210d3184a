"""What a benchmark found: cases and samples in, rows and their three printed forms out. Pure."""

import csv
import io
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from kernels.errors import HeadwiseError

__all__ = [
    "MD_HEAD", "Case", "Phase", "Row", "Sample", "check_fractions", "csv_table", "is_resident",
    "markdown", "md_cells", "md_table", "summarise",
]  # fmt: skip

# Nothing reads faster than the buffer does; the rest is noise between the two measurements.
MAX_FRACTION = 1.05
# A model of so many last-level caches leaves nothing there for the next token.
RESIDENT_CACHES = 4

Phase = Literal["pp", "tg"]


class Case(NamedTuple):
    """One configuration to measure, named as llama-bench does: `pp512` prompt, `tg128` text."""

    phase: Phase
    n_tokens: int
    dtype: str
    depth: int
    threads: int

    @property
    def test(self) -> str:
        """The name of its test."""
        return f"{self.phase}{self.n_tokens}"

    def __str__(self) -> str:
        return f"{self.test} {self.dtype} at depth {self.depth} on {self.threads} threads"


class Sample(NamedTuple):
    """One repeat of a case; `read_bytes_per_s` is what a bare read of memory reached around it."""

    seconds: float
    n_bytes: int
    read_bytes_per_s: float


class Row(msgspec.Struct, frozen=True):
    """The result of one case: medians over its repeats.

    Attributes:
        spread: (largest - smallest) / median of tokens_per_s.
        bytes_per_s: weights, once a decoded token or prefill call, and cached keys and values.
        bandwidth_bytes_per_s: bare reads of memory on the same threads, in the same repeats.
        bandwidth_fraction: median of each repeat's bytes_per_s over its bandwidth.
        cache_resident: so small that it may stay in the cache; the fraction then says nothing.
        weights_bytes: what a decoded token reads of the model.
    """

    test: str
    dtype: str
    depth: int
    threads: int
    tokens_per_s: float
    spread: float
    bytes_per_s: float
    bandwidth_bytes_per_s: float
    bandwidth_fraction: float
    cache_resident: bool
    weights_bytes: int
    repeats_tokens_per_s: tuple[float, ...]


def is_resident(weights_bytes: int, cache_bytes: int) -> bool:
    """Tell whether a model may stay in the last-level cache from token to token."""
    return weights_bytes <= RESIDENT_CACHES * cache_bytes


def summarise(case: Case, samples: Sequence[Sample], weights_bytes: int, cache_bytes: int) -> Row:
    """Return a case's row."""
    speeds = [case.n_tokens / s.seconds for s in samples]
    rates = [s.n_bytes / s.seconds for s in samples]
    bandwidths = [s.read_bytes_per_s for s in samples]
    tokens_per_s = statistics.median(speeds)
    return Row(
        test=case.test,
        dtype=case.dtype,
        depth=case.depth,
        threads=case.threads,
        tokens_per_s=tokens_per_s,
        spread=(max(speeds) - min(speeds)) / tokens_per_s,
        bytes_per_s=statistics.median(rates),
        bandwidth_bytes_per_s=statistics.median(bandwidths),
        bandwidth_fraction=statistics.median(
            rate / bandwidth for rate, bandwidth in zip(rates, bandwidths, strict=True)
        ),
        cache_resident=is_resident(weights_bytes, cache_bytes),
        weights_bytes=weights_bytes,
        repeats_tokens_per_s=tuple(speeds),
    )


def check_fractions(rows: Sequence[Row]) -> None:
    """Refuse results that memory cannot give.

    Raises:
        HeadwiseError: a model that no cache holds was read faster than memory can be.
    """
    for row in rows:
        if row.bandwidth_fraction > MAX_FRACTION and not row.cache_resident:
            raise HeadwiseError(
                f"error of measurement: {row.test} {row.dtype} at depth {row.depth} on "
                f"{row.threads} threads reads {row.bytes_per_s / 1e9:.1f} GB/s, "
                f"{row.bandwidth_fraction:.2f} times what a bare read of memory reaches "
                f"({row.bandwidth_bytes_per_s / 1e9:.1f} GB/s); at most {MAX_FRACTION} is "
                f"believed: measure again on a quiet machine with more repeats (-r)"
            )


MD_HEAD = ("test", "dtype", "depth", "threads", "tokens/s", "spread", "GB/s", "of bandwidth")


def md_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table; `(cache)` marks models that a cache may hold."""
    return markdown([MD_HEAD, *(md_cells(row) for row in rows)])


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of the cells, the first line of which is its head."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    # Numbers to the right, names to the left.
    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [_md_line(cells[0], widths), _md_line(rule, widths)]
    return "\n".join([*lines, *(_md_line(line, widths) for line in cells[1:])])


def md_cells(row: Row) -> tuple[str, ...]:
    """Return what a Markdown table shows of a row, in the order of `MD_HEAD`."""
    fraction = f"{row.bandwidth_fraction:.2f}" + " (cache)" * row.cache_resident
    return (
        row.test, row.dtype, str(row.depth), str(row.threads), f"{row.tokens_per_s:.2f}",
        f"{100 * row.spread:.0f} %", f"{row.bytes_per_s / 1e9:.2f}", fraction,
    )  # fmt: skip


def _md_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if i < 2 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def csv_table(rows: Sequence[msgspec.Struct]) -> str:
    """Return rows of one kind as CSV with a line of names, the single repeats left out."""
    names = [name for name in rows[0].__struct_fields__ if not name.startswith("repeats_")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        fields = msgspec.to_builtins(row)
        # As in JSON: true and false.
        values = [fields[name] for name in names]
        writer.writerow([str(v).lower() if isinstance(v, bool) else v for v in values])
    return out.getvalue().rstrip("\n")
