"""Re-plans are judged by the tokens that they bring."""

from agent.ids import Epoch
from coordinator.promise import JUDGE_TOKENS, Promise


def test_a_promise_is_judged_once_by_the_median_of_its_own_tokens() -> None:
    promise = Promise()
    promise.make(0.1)
    assert promise.token(Epoch(1), 9.0) is None  # of the plan before
    promise.in_force(Epoch(2))
    assert promise.token(Epoch(1), 9.0) is None
    times = [0.2] * (JUDGE_TOKENS - 3) + [5.0, 5.0]
    assert [promise.token(Epoch(2), s) for s in times] == [None] * (JUDGE_TOKENS - 1)
    judgement = promise.token(Epoch(2), 0.2)
    assert str(judgement) == "epoch=2 predicted_ms=100.00 measured_ms=200.00"
    assert judgement is not None
    assert judgement.is_broken
    assert not judgement._replace(measured_s=0.12).is_broken
    assert promise.token(Epoch(2), 0.2) is None


def test_a_promise_that_was_not_kept_is_forgotten() -> None:
    promise = Promise()
    promise.make(0.1)
    promise.forget()
    promise.in_force(Epoch(2))
    assert all(promise.token(Epoch(2), 0.2) is None for _ in range(2 * JUDGE_TOKENS))
