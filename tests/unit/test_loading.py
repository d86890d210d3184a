"""Whose loading takes too long: claims of progress against time."""

import pytest

from agent.ids import AgentName
from coordinator.loading import MIN_BYTES_PER_S, Late, LoadWatch

A, B = AgentName("a"), AgentName("b")
STALLED = "not ready and made no progress for 120 s; look at their logs"


def watch(a_bytes: int = 1000, b_bytes: int = 1000) -> LoadWatch:
    return LoadWatch({A: a_bytes, B: b_bytes}, 120.0, 0.0)


def test_who_makes_no_progress_is_late_and_nobody_else() -> None:
    load = watch()
    load.note(A, 10, 100.0)
    assert load.due_s([A, B]) == 120.0
    assert load.late([A, B], 119.0) is None
    assert load.late([A, B], 120.0) == Late((B,), STALLED)
    # Whoever is ready has no clock.
    assert load.late([A], 120.0) is None
    assert load.due_s([A]) == pytest.approx(220.0)


def test_progress_renews_the_clock_as_often_as_it_rises() -> None:
    load = watch(10**9)
    for i in range(1, 20):
        load.note(A, 1000 * i, 100.0 * i)
        assert load.late([A], 100.0 * i + 119.0) is None
    assert load.late([A], 100.0 * 19 + 120.0) == Late((A,), STALLED)


@pytest.mark.parametrize(
    "claims", [[5, 4, 5, 4, 5, 4], [1000, 1001, 1002, 10**15, 10**15 + 1, 10**18], [0, -1, 0, -1]]
)
def test_claims_that_do_not_rise_or_exceed_the_part_count_once_at_most(claims: list[int]) -> None:
    load = watch(1000)
    for i, claim in enumerate(claims):
        load.note(A, claim, 50.0 * (i + 1))
    assert load.late([A], 50.0 + 120.0) == Late((A,), STALLED)


def test_progress_by_the_byte_ends_with_the_time_that_the_slowest_link_needs() -> None:
    n_bytes = int(1000 * MIN_BYTES_PER_S)
    load = watch(n_bytes - 1000, 1000)
    load.note(B, 1000, 1.0)
    for now_s in range(1, 1240):
        load.note(A, now_s, float(now_s))
        assert load.late([A], float(now_s)) is None
    assert load.due_s([A]) == pytest.approx(1240.0)
    late = load.late([A], 1240.0)
    assert late is not None
    assert late.names == (A,)
    assert late.why == (
        "not ready after 1240 s, though the plan's 250000000 bytes of weights need less at "
        "250000 bytes/s; look at links and logs"
    )
