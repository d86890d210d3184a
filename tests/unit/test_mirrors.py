"""Mirrors of a plan in force, and what a loss leaves of it: agents and plans are played."""

import logging
from typing import cast

import pytest

from agent.ids import AgentName, Epoch, KvId
from agent.kv_ops import KvOpCode
from agent.migration_messages import Arrive, MoveEnd, MoveFailed, Want
from coordinator import mirrors as module
from coordinator.forecast import Forecast
from coordinator.known_agent import Agent
from kernels.errors import AgentLostError, RemoteError
from tests.unit.mirror_house import GROUP_BYTES, Clock, MirrorHouse
from tests.unit.move_house import ROW, RUN, A, B, C, Carrier, plan

BEFORE, AFTER = plan(a=2, b=1, c=1), plan(a=2, b=2)
LOST = AgentLostError("agent 'c' was lost", "c")


def house() -> MirrorHouse:
    return MirrorHouse(BEFORE, AFTER)


def test_a_mirror_begins_with_the_first_text_and_follows_it() -> None:
    h = house()
    h.mirrors.go_on()
    assert h.board.mirrors_begun() == []
    text = h.text(1)
    h.write(text, 30)
    (epoch,) = h.board.mirrors_begun()
    wanted = h.board.wanted(epoch)
    assert wanted == sorted(wanted)
    assert wanted[-1] > 20
    view = h.mirrors.view()
    assert view is not None
    assert view.lag_tokens is not None
    assert view.lag_tokens < 10
    assert view.holders == "a on b, b on c, c on a"
    # The texts after it are mirrored from their first row on.
    text.close()
    h.write(h.text(2), 10)
    assert {o.kv_id for _, o in h.board.orders if isinstance(o, Want) and not o.gone} == {1, 2}
    assert h.board.mirrors_begun() == [epoch]


def test_after_a_loss_a_text_has_the_rows_that_are_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coordinator")
    h = house()
    text = h.text(1)
    h.write(text, 30)
    (mirror,) = h.board.mirrors_begun()
    h.board.lose(C)
    text.reopen(LOST)
    assert h.restored == [True]
    assert 20 < text.n_tokens <= 30
    assert text.engine is cast("Carrier", h.plans.engine)
    assert h.plans.plan == AFTER
    # What the lost agent had comes from its mirror, the rest from where it was.
    arrive = [o for n, o in h.board.orders if isinstance(o, Arrive) and not o.mirror and n == B]
    of = {(s.source, s.of_epoch) for s in arrive[-1].shares}
    assert of == {(B, 0), (A, mirror)}
    assert h.board.freed(mirror) >= {A, B}
    assert "recovery from=mirror" in caplog.text
    assert not any(op == (KvOpCode.OPEN, 1, None) for op in h.plans.carrier.ops)
    text.step(ROW, text.n_tokens, ())
    # And a new mirror, of the new plan.
    h.write(text, 3)
    assert len(h.board.mirrors_begun()) == 2


def test_texts_written_in_turn_are_restored_together() -> None:
    h = house()
    texts = [h.text(1), h.text(2)]
    for _ in range(20):
        for text in texts:
            h.write(text, 1)
    h.board.lose(C)
    texts[0].reopen(LOST)
    assert h.restored == [True]
    for text in texts:
        assert text.n_tokens > 10
        text.step(ROW, text.n_tokens, ())
    assert h.restored == [True]


def fallen_back(h: MirrorHouse, n_rows: int = 30) -> None:
    """Write, lose an agent, and see to it that the text begins anew in the next plan."""
    text = h.text(1)
    h.write(text, n_rows)
    h.board.lose(C)
    text.reopen(LOST)
    assert h.restored == [False]
    assert text.n_tokens == 0
    assert not cast("Carrier", text.engine).ended
    assert h.texts.follower is None
    assert not h.moves.is_moving
    text.step(ROW, 0, ())


def test_an_agent_lost_besides_ends_it_in_prefill() -> None:
    h = house()
    h.plans.while_preparing = lambda: h.board.lose(B)
    fallen_back(h)
    assert h.plans.n_drops


def test_a_plan_that_cannot_be_moved_to_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    h = house()

    def prepare(*_: object) -> None:
        raise AgentLostError("agent 'b' is gone", "b")

    monkeypatch.setattr(h.plans, "prepare", prepare)
    fallen_back(h)


def test_who_mirrors_the_lost_one_is_lost_too() -> None:
    h = house()
    text = h.text(1)
    h.write(text, 30)
    h.board.lose(A)
    h.board.lose(C)
    text.reopen(LOST)
    assert h.restored == [False]
    assert text.n_tokens == 0


def test_survivors_without_room_for_both_plans_compute_again() -> None:
    h = house()
    h.plans.has_room = False
    fallen_back(h)
    # Mirrors count: of b's rows on c, of c's on a, of a's on b.
    assert h.plans.besides_bytes == {B: 2 * GROUP_BYTES, C: GROUP_BYTES, A: GROUP_BYTES}
    assert h.plans.n_drops


def test_a_short_text_is_computed_again_where_that_is_faster() -> None:
    h = house()
    h.texts.note(8, 1e-6)
    fallen_back(h)


def test_rows_that_are_kept_for_too_long_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    h = house()
    text = h.text(1)
    h.write(text, 30)
    monkeypatch.setattr(module, "KEEP_S", -1.0)
    assert h.mirrors.hold()
    assert h.mirrors.is_stale
    assert not h.mirrors.restore(AFTER, lambda: None)
    assert h.plans.n_drops == 1
    assert not h.mirrors.is_stale


def test_whoever_interrupts_it_leaves_nothing_behind() -> None:
    h = house()
    text = h.text(1)
    h.write(text, 30)
    (mirror,) = h.board.mirrors_begun()
    h.board.silent = {A}

    def interrupt() -> None:
        raise RemoteError("the coordinator has been stopped")

    h.check = interrupt
    with pytest.raises(RemoteError, match="stopped"):
        text.reopen(LOST)
    assert not h.moves.is_moving
    assert h.plans.withdrawn
    assert h.plans.n_drops == 1
    assert h.board.freed(mirror) == {A, B, C}


def test_without_rows_there_is_nothing_to_hold() -> None:
    h = house()
    assert not h.mirrors.hold()
    text = h.text(1)
    assert not h.mirrors.hold()
    h.write(text, 3)
    assert h.mirrors.hold()
    assert h.mirrors.hold()
    h.mirrors.plan_changes()
    assert not h.mirrors.hold()


def test_a_mirror_that_is_being_told_off_is_not_held(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coordinator")
    h = house()
    text = h.text(1)
    h.write(text, 30)
    (mirror,) = h.board.mirrors_begun()
    # It has failed since it was looked at last: whoever took part is told to free its pool.
    h.board.unanswered = (MoveEnd,)
    h.board.reports.append((B, MoveFailed(RUN, mirror, "rows arrived damaged")))
    h.board.lose(C)
    text.reopen(LOST)
    assert h.board.freed(mirror) >= {A, B}
    assert h.restored == [False]
    assert "recovery from=prefill: the mirror has failed" in caplog.text
    assert text.n_tokens == 0
    text.step(ROW, 0, ())


def test_time_alone_does_not_end_a_mirror_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    h = house()
    text = h.text(1)
    h.write(text, 30)
    h.board.unanswered = (Want,)
    while len(h.board.mirrors_begun()) == 1 and clock.now_s < 1029.0:
        h.write(text, 1)
        clock.now_s += 0.9
    clock.now_s += 0.9
    assert h.mirrors.hold()
    (mirror,) = h.board.mirrors_begun()
    assert not h.board.freed(mirror)


def test_a_migration_ends_a_mirror_and_another_one_begins_after_it() -> None:
    h = house()
    text = h.text(1)
    h.write(text, 10)
    (mirror,) = h.board.mirrors_begun()
    h.moves.begin(plan(a=1, b=2, c=1))
    h.mirrors.plan_changes()
    assert h.board.freed(mirror) == {A, B, C}
    while h.moves.is_moving:
        h.moves.go_on()
        h.write(text, 1)
    h.write(text, 10)
    assert len(h.board.mirrors_begun()) == 2


def test_rows_pass_as_long_as_the_mirror_or_the_move_that_ended_it() -> None:
    h = house()
    text = h.text(1)
    h.write(text, 10)
    (mirror,) = h.board.mirrors_begun()
    assert h.bulk.passes == mirror
    h.moves.begin(plan(a=1, b=2, c=1))
    h.mirrors.plan_changes()
    assert h.moves.move is not None
    assert h.bulk.passes == h.moves.move.epoch
    while h.moves.is_moving:
        h.moves.go_on()
        h.write(text, 1)
    h.write(text, 1)
    assert h.bulk.passes == h.board.mirrors_begun()[1]
    h.mirrors.plan_changes()
    assert h.bulk.passes is None


def test_a_mirror_that_lost_its_place_to_a_move_that_did_not_begin_begins_anew() -> None:
    h = house()
    text = h.text(1)
    h.write(text, 10)
    h.texts.follower = None
    h.write(text, 30)
    assert len(h.board.mirrors_begun()) == 2
    assert h.board.wanted(h.board.mirrors_begun()[1])[-1] > 30


def test_who_cannot_take_a_copy_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    h = house()
    h.board.silent = {B}
    text = h.text(1)
    h.write(text, 2)
    (epoch,) = h.board.mirrors_begun()
    h.board.reports.append((B, MoveFailed(RUN, epoch, "no memory")))
    h.board.silent = set()
    h.write(text, 20)
    view = h.mirrors.view()
    assert view is not None
    assert view.holders == "a on c, b on a, c on a"


def test_without_room_there_is_none_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    h = house()
    h.board.memory_bytes -= 100
    text = h.text(1)
    h.write(text, 20)
    assert h.board.mirrors_begun() == []
    view = h.mirrors.view()
    assert view is not None
    assert view.lag_tokens is None
    assert "no agent has room" in view.reason
    assert caplog.text.count("no agent has room") == 1
    # With room for some: those.
    h.board.memory_bytes += 25
    h.write(text, 1)
    view = h.mirrors.view()
    assert view is not None
    assert (view.holders, view.reason) == ("b on c, c on b", "no room for that of a")


def test_a_mirror_gives_way_when_memory_gets_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    left = {"bytes": 1000}

    def forecast_of(agent: Agent) -> Forecast:
        return Forecast(AgentName(agent.name), left["bytes"], 100, 500)

    monkeypatch.setattr(module, "forecast_of", forecast_of)
    h = house()
    text = h.text(1)
    h.write(text, 10)
    (mirror,) = h.board.mirrors_begun()
    assert h.board.freed(mirror) == set()
    # Enough for the plan, but for half of a reserve that the mirror would use.
    left["bytes"] = 500 - 50 + GROUP_BYTES
    h.write(text, 1)
    assert h.board.freed(mirror) == {A, B, C}
    view = h.mirrors.view()
    assert view is not None
    assert "runs out of memory" in view.reason
    h.write(text, 10)
    assert h.board.mirrors_begun() == [mirror]


def test_nobody_asked_for_mirrors() -> None:
    h = house()
    off = module.Mirrors(RUN, False, h.plans, h.moves, h.board, h.texts, h.moves._geometry)
    h.text(1).step(ROW, 0, ())
    off.go_on()
    assert off.view() is None
    assert not off.hold()
    assert h.board.orders == []
    assert h.texts.get(KvId(1)) is not None
    assert h.plans.epoch == Epoch(1)
