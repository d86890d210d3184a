"""The gap that a loss makes in a stream, from the times of its tokens."""

import pytest

from tools.faults.lab import goodput_bytes_per_s
from tools.faults.schedule import Kind
from tools.faults.survival import limit_s, longest_gap


def test_the_longest_gap_from_a_token_on_is_found_wherever_it_is() -> None:
    # A pause before the loss does not count; tokens already under way come at once.
    times_s = [0.0, 9.0, 10.0, 10.5, 14.5, 15.0]
    assert longest_gap(times_s, 2) == (4.0, 4)
    assert longest_gap(times_s, 1) == (9.0, 1)


def test_a_stream_that_ends_at_the_loss_has_no_gap() -> None:
    assert longest_gap([0.0, 1.0], 2) == (None, 2)
    assert longest_gap([], 1) == (None, 0)


def test_what_a_gap_may_be_follows_the_issue() -> None:
    goodput = goodput_bytes_per_s("1gbit")
    assert goodput == pytest.approx(117.7e6, rel=0.001)
    assert goodput_bytes_per_s("100mbit") == pytest.approx(goodput / 10)
    assert limit_s(Kind.KILL, 4.0, 0, None) == 5.0
    assert limit_s(Kind.FREEZE, 4.0, 0, goodput) == limit_s(Kind.CUT, 4.0, 0, goodput) == 6.5
    pulled = limit_s(Kind.KILL, 4.0, 80_000_000, 100e6)
    assert pulled == pytest.approx(6.0)
    # Without a known cable, or a prefill to compare with, there is none.
    assert limit_s(Kind.KILL, 4.0, 1, None) is None
    assert limit_s(Kind.KILL, None, 0, goodput) is None
