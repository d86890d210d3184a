"""How long a text waits for another plan."""

from coordinator.patience import RECOVER_S, RETURN_S, Patience


def test_boards_may_come_back_for_a_while() -> None:
    patience = Patience(100.0)
    assert not patience.is_over(True, 101.0)
    assert not patience.is_over(True, 101.0 + 0.9 * RETURN_S)
    assert patience.is_over(True, 101.0 + RETURN_S)


def test_a_ray_of_hope_begins_the_while_anew() -> None:
    patience = Patience(0.0)
    assert not patience.is_over(True, 1.0)
    assert not patience.is_over(False, 1.0 + 2 * RETURN_S)
    assert not patience.is_over(True, 1.0 + 3 * RETURN_S)
    assert patience.is_over(True, 1.0 + 4 * RETURN_S)


def test_it_is_over_some_time_whatever_happens() -> None:
    patience = Patience(50.0)
    assert not patience.is_over(False, 50.0 + RECOVER_S)
    assert patience.is_over(False, 51.0 + RECOVER_S)
