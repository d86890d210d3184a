"""Bookkeeping of one dispatched phase."""

from hypothesis import given
from hypothesis import strategies as st

from agent.ids import Epoch, Rank, Seq
from coordinator.gather import Gather


def begun(ranks: tuple[int, ...] = (0, 1, 2), epoch: int | None = 4) -> Gather:
    gather = Gather()
    gather.begin(
        Seq(7), [Rank(r) for r in ranks], 10.0, 12.5, None if epoch is None else Epoch(epoch)
    )
    return gather


def reply(gather: Gather, rank: int, seq: int = 7, epoch: int = 4) -> str:
    return gather.on_reply(Rank(rank), Seq(seq), Epoch(epoch))


def test_complete_when_everyone_answered() -> None:
    gather = begun()
    assert gather.missing() == [0, 1, 2]
    assert reply(gather, 2) == "accepted"
    assert reply(gather, 0) == "accepted"
    assert (gather.missing(), gather.complete) == ([1], False)
    assert reply(gather, 1) == "accepted"
    assert (gather.missing(), gather.complete) == ([], True)
    assert gather.ranks == (0, 1, 2)


def test_answers_count_once() -> None:
    gather = begun()
    assert reply(gather, 1) == "accepted"
    assert reply(gather, 1) == "duplicate"
    assert gather.missing() == [0, 2]
    assert (gather.n_duplicate, gather.n_stale) == (1, 0)


def test_other_steps_epochs_and_strangers_are_stale() -> None:
    gather = begun()
    assert reply(gather, 0, seq=6) == "stale"
    assert reply(gather, 0, epoch=3) == "stale"
    assert reply(gather, 9) == "stale"
    assert gather.missing() == [0, 1, 2]
    assert gather.n_stale == 3


def test_epoch_may_be_checked_by_the_caller() -> None:
    assert reply(begun(epoch=None), 0, epoch=99) == "accepted"


def test_nothing_is_accepted_before_begin() -> None:
    assert reply(Gather(), 0) == "stale"


def test_a_late_answer_does_not_count_for_the_next_step() -> None:
    gather = begun()
    gather.begin(Seq(8), [Rank(0), Rank(1)], 20.0, 21.0, Epoch(4))
    assert reply(gather, 2) == "stale"
    assert reply(gather, 0) == "stale"
    assert reply(gather, 0, seq=8) == "accepted"


def test_deadline() -> None:
    gather = begun((0,))
    assert not gather.expired(12.4)
    assert gather.expired(12.5)
    assert gather.waited_s(12.0) == 2.0
    reply(gather, 0)
    assert not gather.expired(99.0)


@given(
    ranks=st.sets(st.integers(0, 8), min_size=1),
    replies=st.lists(st.tuples(st.integers(0, 9), st.integers(6, 8), st.integers(3, 5))),
)
def test_accepts_each_expected_answer_exactly_once(
    ranks: set[int], replies: list[tuple[int, int, int]]
) -> None:
    gather = begun(tuple(sorted(ranks)))
    accepted = [r for r, seq, epoch in replies if reply(gather, r, seq, epoch) == "accepted"]
    wanted = {r for r, seq, epoch in replies if r in ranks and (seq, epoch) == (7, 4)}
    assert sorted(accepted) == sorted(wanted)
    assert gather.missing() == sorted(ranks - wanted)
    assert gather.n_duplicate + gather.n_stale + len(accepted) == len(replies)
