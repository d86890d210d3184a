"""Boards that are fast only while they have little to do are not given back what was taken."""

from agent.ids import AgentName
from coordinator.relief import FIRST_WAIT_S, RECOVERED_S, SOON_S, Relief

A, B = AgentName("a"), AgentName("b")
SLOW, FAST = 0.4e9, 1e9


def relieved(at_s: float = 0.0) -> Relief:
    """Work was taken off `a`, which had become slow."""
    relief = Relief()
    for name in (A, B):
        relief.measured(name, FAST, at_s - 10)
    relief.moved([A], {A: SLOW, B: FAST}, at_s)
    return relief


def test_a_board_that_is_as_fast_as_ever_is_believed_whatever_is_taken_off_it() -> None:
    relief = relieved()
    relief.moved([A, B], {A: SLOW, B: 0.9 * FAST}, 0.0)
    relief.measured(B, 1.3 * FAST, 0.5)
    assert relief.rate(B, 1.3 * FAST, 0.6) == 1.3 * FAST


def test_a_rate_that_rises_as_soon_as_work_was_taken_off_is_not_believed_for_a_while() -> None:
    relief = relieved()
    assert relief.rate(A, FAST, 0.2) == FAST
    relief.measured(A, FAST, 0.5)
    assert relief.rate(A, FAST, 0.6) == SLOW
    assert relief.rate(A, SLOW / 2, 0.6) == SLOW / 2
    assert relief.rate(B, FAST, 0.6) == FAST
    end_s = 0.5 + FIRST_WAIT_S
    assert not relief.ends(end_s - 0.1, 0.6)
    assert relief.ends(end_s + 0.1, end_s - 0.1)
    assert not relief.ends(end_s + 0.2, end_s + 0.1)
    assert relief.rate(A, FAST, end_s + 0.1) == FAST


def test_one_that_rises_later_or_hardly_is_believed() -> None:
    relief = relieved()
    relief.measured(A, 1.2 * SLOW, 0.5)
    relief.measured(A, FAST, SOON_S + 0.1)
    assert relief.rate(A, FAST, SOON_S + 0.2) == FAST


def test_each_time_it_takes_longer_until_it_is_believed_again() -> None:
    relief = relieved()
    relief.measured(A, FAST, 0.5)
    again_s = 1.0 + FIRST_WAIT_S
    # It got its work back, was slow again, and was relieved again.
    relief.measured(A, SLOW, again_s)
    relief.moved([A], {A: SLOW}, again_s + 1)
    relief.measured(A, FAST, again_s + 2)
    assert relief.rate(A, FAST, again_s + 2 + 1.9 * FIRST_WAIT_S) == SLOW
    assert relief.rate(A, FAST, again_s + 2 + 2.1 * FIRST_WAIT_S) == FAST


def test_a_board_that_stays_fast_with_all_its_work_is_as_if_nothing_had_been() -> None:
    relief = relieved()
    relief.measured(A, FAST, 0.5)
    recovered_s = 1.0 + FIRST_WAIT_S + RECOVERED_S
    relief.measured(A, FAST, recovered_s)
    relief.moved([A], {A: SLOW}, recovered_s + 1)
    relief.measured(A, FAST, recovered_s + 2)
    assert relief.rate(A, FAST, recovered_s + 2 + 1.1 * FIRST_WAIT_S) == FAST


def test_boards_that_leave_or_were_never_measured_are_nothing_special() -> None:
    relief = relieved()
    relief.measured(A, FAST, 0.5)
    relief.forget(A)
    assert relief.rate(A, FAST, 0.6) == FAST
    relief.moved([B], {}, 1.0)
    relief.measured(B, FAST, 1.1)
    assert relief.rate(B, FAST, 1.2) == FAST


def test_who_is_believed_again_and_disappoints_is_not_believed_for_longer() -> None:
    relief = relieved()
    assert not relief.disappointed(0.2)  # nothing of it was seen before
    relief.measured(A, FAST, 0.5)
    assert not relief.disappointed(1.0)  # it has no work that could have been slow
    again_s = 1.0 + FIRST_WAIT_S
    assert relief.rate(A, FAST, again_s) == FAST
    # It was given work, and reports the median of its calls, which is as fast as ever.
    assert relief.disappointed(again_s)
    assert relief.rate(A, FAST, again_s) == SLOW
    assert relief.rate(A, FAST, again_s + 1.9 * FIRST_WAIT_S) == SLOW
    assert relief.rate(A, FAST, again_s + 2.1 * FIRST_WAIT_S) == FAST


def test_a_board_that_needs_a_while_to_become_hot_is_not_taken_for_recovered() -> None:
    relief = relieved()
    relief.measured(A, FAST, 0.5)
    hot_s = FIRST_WAIT_S + 12.0
    for i in range(11):
        relief.measured(A, FAST, FIRST_WAIT_S + 1.0 + i)
    relief.measured(A, SLOW, hot_s)
    relief.moved([A], {A: SLOW}, hot_s + 1.0)
    relief.measured(A, FAST, hot_s + 1.5)
    assert relief.rate(A, FAST, hot_s + 1.5 + 1.5 * FIRST_WAIT_S) == SLOW
