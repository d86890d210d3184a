"""Bookkeeping of one dispatched phase."""

from hypothesis import given
from hypothesis import strategies as st

from agent.ids import Rank, Seq
from coordinator.gather import Gather


def begun(ranks: tuple[int, ...] = (0, 1, 2)) -> Gather:
    gather = Gather()
    gather.begin(Seq(7), [Rank(r) for r in ranks], 12.5)
    return gather


def reply(gather: Gather, rank: int, seq: int = 7) -> str:
    return gather.on_reply(Rank(rank), Seq(seq))


def test_complete_when_everyone_answered() -> None:
    gather = begun()
    assert gather.missing() == [0, 1, 2]
    assert reply(gather, 2) == "accepted"
    assert reply(gather, 0) == "accepted"
    assert gather.missing() == [1]
    assert reply(gather, 1) == "accepted"
    assert gather.missing() == []
    assert gather.ranks == (0, 1, 2)


def test_answers_count_once() -> None:
    gather = begun()
    assert reply(gather, 1) == "accepted"
    assert reply(gather, 1) == "duplicate"
    assert gather.missing() == [0, 2]
    assert (gather.n_duplicate, gather.n_stale) == (1, 0)


def test_other_steps_and_strangers_are_stale() -> None:
    gather = begun()
    assert reply(gather, 0, seq=6) == "stale"
    assert reply(gather, 9) == "stale"
    assert gather.missing() == [0, 1, 2]
    assert gather.n_stale == 2


def test_nothing_is_accepted_before_begin() -> None:
    assert reply(Gather(), 0) == "stale"


def test_a_late_answer_does_not_count_for_the_next_step() -> None:
    gather = begun()
    gather.begin(Seq(8), [Rank(0), Rank(1)], 21.0)
    assert reply(gather, 2) == "stale"
    assert reply(gather, 0) == "stale"
    assert reply(gather, 0, seq=8) == "accepted"


def test_deadline() -> None:
    gather = begun((0,))
    assert not gather.expired(12.4)
    assert gather.expired(12.5)
    reply(gather, 0)
    assert not gather.expired(99.0)


@given(
    ranks=st.sets(st.integers(0, 8), min_size=1),
    replies=st.lists(st.tuples(st.integers(0, 9), st.integers(6, 8))),
)
def test_accepts_each_expected_answer_exactly_once(
    ranks: set[int], replies: list[tuple[int, int]]
) -> None:
    gather = begun(tuple(sorted(ranks)))
    accepted = [r for r, seq in replies if reply(gather, r, seq) == "accepted"]
    wanted = {r for r, seq in replies if r in ranks and seq == 7}
    assert sorted(accepted) == sorted(wanted)
    assert gather.missing() == sorted(ranks - wanted)
    assert gather.n_duplicate + gather.n_stale + len(accepted) == len(replies)
