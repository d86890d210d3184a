"""One migration carried out: texts, agents and plans are played, the decisions are real."""

from typing import Any

import pytest

from agent.ids import AgentName
from agent.kv_ops import KvOpCode
from agent.migration_messages import MoveEnd, Want
from coordinator.migration_events import Outcome
from coordinator.plan import Plan, Stage
from kernels.errors import AgentLostError, PlanError
from tests.unit.move_house import ROW, A, B, C, House, plan


def test_texts_change_over_and_the_new_plan_is_put_into_force() -> None:
    house = House(plan(a=2, b=2))
    written, idle = house.text(1, 3), house.text(2, 5)
    former = house.plans.carrier
    house.moves.begin(plan(a=1, c=1, b=2))
    while written.engine is former:
        written.step(ROW, written.n_tokens, ())
    assert house.settle() is Outcome.MOVED
    assert written.engine is idle.engine is house.plans.carrier
    assert house.plans.epoch == 2
    # B keeps its pool for both plans: its rows are not released.
    released = [(kv_id, names) for code, kv_id, names in former.ops if code is KvOpCode.RELEASE]
    assert sorted(released) == [(1, (A,)), (2, (A,))]


@pytest.mark.parametrize("busy", [False, True])
def test_links_of_targets_are_warmed_up_where_that_disturbs_no_text(busy: bool) -> None:
    house = House(plan(a=2, b=2))
    house.plans.busy = busy
    house.moves.begin(plan(a=1, c=1, b=2))
    assert len(house.bulk.warmed) == (0 if busy else 2)  # A's and C's; B keeps what it has


def test_an_agent_that_is_lost_while_a_move_is_prepared_ends_it() -> None:
    house = House(plan(a=2, b=2))
    house.board.silent = {B}
    house.plans.while_preparing = lambda: house.board.lose(C)
    house.moves.begin(plan(a=1, b=2, c=1))
    house.board.silent = set()
    assert house.settle() is Outcome.ABORTED
    assert house.plans.epoch == 1


@pytest.mark.parametrize("name", [B, C])
def test_an_agent_that_dials_anew_while_a_move_is_prepared_ends_it(name: AgentName) -> None:
    house = House(plan(a=2, b=2))
    text = house.text(1, 3)

    def dial_anew() -> None:
        house.board.n_dialled[name] += 1

    house.plans.while_preparing = dial_anew
    with pytest.raises(AgentLostError, match=f"{name}.*dialled anew"):
        house.moves.begin(plan(a=1, b=2, c=1))
    assert not house.moves.is_moving
    assert house.plans.withdrawn == [2]
    assert house.board.ended(2) == {A, B, C}
    house.plans.while_preparing = lambda: None
    house.moves.begin(plan(a=1, b=2, c=1))
    assert house.settle() is Outcome.MOVED
    assert text.engine is house.plans.carrier


def test_losses_of_old_do_not_end_a_move() -> None:
    house = House(plan(a=2, b=2))
    house.board.lost.append((A, "long ago"))
    house.moves.begin(plan(a=1, b=3))
    assert house.settle() is Outcome.MOVED


def test_a_text_whose_plan_is_gone_is_not_moved() -> None:
    house = House(plan(a=2, b=2))
    lost, here = house.text(1, 7), house.text(2, 3)
    house.plans.carrier.ended = True
    here.reopen(AgentLostError("agent 'x' was lost", "x"))
    here.step(ROW, 0, ())
    # Nobody has written text 1 since: its rows are nowhere.
    house.moves.begin(plan(a=3, b=1))
    assert house.settle() is Outcome.MOVED
    wanted = {o.kv_id for _, o in house.board.orders if isinstance(o, Want)}
    assert wanted == {2}
    with pytest.raises(AgentLostError):
        lost.step(ROW, 7, ())
    lost.reopen(AgentLostError("gone"))
    assert (lost.n_tokens, lost.engine) == (0, house.plans.carrier)


def test_agents_forget_a_move_that_is_given_up_and_the_next_one_begins_at_once() -> None:
    house = House(plan(a=2, b=2))
    house.board.silent = {C}
    house.moves.begin(plan(a=1, b=2, c=1))
    assert house.moves.abandon("agent 'c' is frozen")
    assert house.plans.withdrawn == [2]
    assert house.board.ended(2) == {A, B, C}
    assert house.texts.follower is None
    house.moves.begin(plan(a=1, b=3))
    assert house.settle() is Outcome.MOVED
    assert house.plans.epoch == 3


def test_a_move_that_breaks_leaves_nothing_behind() -> None:
    house = House(plan(a=2, b=2))
    first, second = house.text(1, 3), house.text(2, 3)
    house.board.loading = {A, B, C}  # nobody is ready before the step has begun
    house.moves.begin(plan(a=1, b=2, c=1))
    # The second one is in the middle of a step.
    follower = house.texts.follower
    assert follower is not None
    follower.begins(second.kv_id)
    house.board.loading = set()
    while first.engine is not house.plans.coming:
        house.moves.go_on()
    house.board.lose(C)
    assert house.settle() is Outcome.BROKEN
    assert house.board.ended(2) == {A, B}
    assert (house.plans.plan, house.texts.follower, house.moves.move) == (None, None, None)
    for text in (first, second):
        with pytest.raises(AgentLostError):
            text.step(ROW, text.n_tokens, ())
        text.reopen(AgentLostError("gone"))
        text.step(ROW, 0, ())
        assert text.engine is house.plans.carrier


@pytest.mark.parametrize("after", [plan(b=2, a=2), plan(kv="f32", a=1, b=3)])
def test_what_cannot_be_moved_is_refused_and_nothing_follows(after: Plan) -> None:
    before = plan(a=2, b=2)
    if after.kv == before.kv:
        # The same atoms, in another order of ranks.
        after = Plan(before.model_id, (Stage(0, 1, before.members[::-1]),))
    house = House(before)
    with pytest.raises(PlanError, match="install it instead"):
        house.moves.begin(after)
    assert house.texts.follower is None
    assert house.moves.move is None


def test_whatever_interrupts_the_beginning_nothing_is_left_of_it() -> None:
    house = House(plan(a=2, b=2))
    text = house.text(1, 3)

    def interrupt(told: Any) -> None:
        raise KeyboardInterrupt

    house.board.assign = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        house.moves.begin(plan(a=1, b=3))
    assert house.moves.move is None
    assert house.texts.follower is None
    assert house.plans.withdrawn == [2]
    text.step(ROW, 3, ())
    assert text.engine is house.plans.carrier


def test_a_text_that_is_interrupted_at_its_commit_is_released_where_its_rows_are() -> None:
    house = House(plan(a=2, b=2))
    text = house.text(1, 3)
    former = house.plans.carrier

    def interrupt() -> None:
        raise KeyboardInterrupt

    former.on_release = interrupt
    house.moves.begin(plan(a=1, b=3))
    with pytest.raises(KeyboardInterrupt):
        house.settle()
    text.close()
    assert (KvOpCode.RELEASE, 1, None) in house.plans.coming.ops


def test_a_text_that_is_closed_while_it_is_held_does_not_keep_the_move() -> None:
    house = House(plan(a=2, b=2))
    text = house.text(1, 3)
    house.board.loading = {A, B, C}  # nobody is ready before the step has begun
    house.moves.begin(plan(a=1, b=3))
    follower = house.texts.follower
    assert follower is not None
    follower.begins(text.kv_id)
    house.board.loading = set()
    house.moves.go_on()
    house.board.silent = {B}
    # Two more rows, of which the target says nothing: it is held.
    follower.ended(text.kv_id, 5, prefill=False)
    move = house.moves.move
    assert move is not None
    assert not move.may_step(text.kv_id)
    house.board.silent = set()
    text.close()
    assert house.settle() is Outcome.MOVED
    wants = [o for _, o in house.board.orders if isinstance(o, Want)]
    assert wants[-1].gone


def test_a_text_that_opens_in_the_plan_to_come_keeps_a_loss_from_undoing_it() -> None:
    house = House(plan(a=2, b=2))
    written = house.text(1, 3)
    house.board.loading = {A, B, C}  # nobody is ready before the step has begun
    house.moves.begin(plan(a=1, b=2, c=1))
    follower = house.texts.follower
    assert follower is not None
    # It is in the middle of a step when all is prepared.
    follower.begins(written.kv_id)
    house.board.loading = set()
    for _ in range(5):
        house.moves.go_on()
    opened = house.text(2, 1)
    assert opened.engine is house.plans.coming
    house.board.lose(C)
    # Otherwise the agents freed what it is written by, and it waited for an answer.
    assert house.settle() is Outcome.BROKEN
    with pytest.raises(AgentLostError):
        opened.step(ROW, 1, ())


def test_a_loss_before_a_text_has_changed_over_ends_the_move() -> None:
    house = House(plan(a=2, b=2))
    text = house.text(1, 3)
    house.board.loading = {A, B, C}  # nobody is ready before the step has begun
    house.moves.begin(plan(a=1, b=2, c=1))
    follower = house.texts.follower
    assert follower is not None
    follower.begins(text.kv_id)
    house.board.loading = set()
    for _ in range(5):
        house.moves.go_on()
    assert house.texts.engine_for_new() is house.plans.coming
    # In the middle of its step, and nobody has told of it yet.
    text.reopen(AgentLostError("agent 'a' was lost", "a"))
    assert house.moves.move is None
    assert text.engine is house.plans.carrier
    assert house.plans.withdrawn == [2]


def test_whatever_goes_wrong_with_a_move_ends_the_move_alone() -> None:
    house = House(plan(a=2, b=2))
    text = house.text(1, 3)
    house.plans.breaks = True
    house.moves.begin(plan(a=1, b=2, c=1))
    text.step(ROW, 3, ())
    assert house.settle() is Outcome.ABORTED
    assert house.board.ended(2) == {A, B, C}
    assert house.plans.withdrawn == [2]
    text.step(ROW, 4, ())
    assert text.engine is house.plans.carrier


def test_a_move_that_all_texts_have_followed_is_not_given_up_any_more() -> None:
    house = House(plan(a=2, b=2))
    text = house.text(1, 3)
    house.moves.begin(plan(a=1, b=2, c=1))
    # Nobody has said yet that he has freed what he had.
    house.board.unanswered = (MoveEnd,)
    while text.engine is not house.plans.coming:
        text.step(ROW, text.n_tokens, ())
    assert house.moves.move is not None
    assert not house.moves.abandon("agent 'a' is short of memory")
    ended = house.moves.take_ended()
    assert ended is not None
    assert ended.outcome is Outcome.MOVED
    assert (house.plans.epoch, house.plans.withdrawn) == (2, [])
    text.step(ROW, text.n_tokens, ())
    assert text.engine is house.plans.carrier
