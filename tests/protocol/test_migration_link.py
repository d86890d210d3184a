"""Migrations over a network that loses, doubles, delays and reorders, in virtual time."""

import pytest

from agent.ids import KvId
from coordinator.migration_events import Cancel, Outcome
from tests.protocol.migration_boards import NEW, OLD, Faults, Where
from tests.protocol.migration_world import World

ALL = [(layer, group) for layer in range(2) for group in range(3)]
OLD_PLAN: Where = {"a": [(0, 0), (0, 1), (1, 0)], "b": [(0, 2), (1, 1)], "c": [(1, 2)]}
# a gives to b and to a newcomer; c is not touched.
NEW_PLAN: Where = {"a": [(0, 0)], "b": [(0, 1), (0, 2), (1, 1)], "c": [(1, 2)], "d": [(1, 0)]}
BAD = Faults(lost=0.2, doubled=0.2, late_s=0.4)
LIMIT_S = 600.0


def with_texts(**world: object) -> World:
    w = World(OLD_PLAN, NEW_PLAN, **world)  # type: ignore[arg-type]
    for n_tokens in (70, 5, 130):
        w.open(n_tokens)
    return w


def write_on(world: World, kv_id: KvId, each_s: float, n_rows: int = 1) -> None:
    """Let a text grow for ever, as its writer does."""

    def step() -> None:
        if kv_id in world.texts:
            if world.begin_step(kv_id, n_rows):
                world.at(each_s, lambda: kv_id in world.texts and world.end_step(kv_id))
            world.at(1.5 * each_s, step)

    step()


@pytest.mark.parametrize("seed", range(6))
def test_texts_change_over_while_they_are_written(seed: int) -> None:
    world = with_texts(seed=seed, faults=BAD)
    write_on(world, KvId(1), 0.3)
    write_on(world, KvId(2), 0.2)
    world.begin()
    world.run(LIMIT_S, lambda: world.done)
    assert world.finished is not None
    assert world.finished.outcome is Outcome.MOVED
    assert not world.finished.unfreed
    assert sorted(world.commits) == [1, 2, 3]
    world.check()
    world.check_end()
    assert set(world.agents["c"].pools) == {NEW}


def test_a_good_link_moves_quickly_and_holds_shortly() -> None:
    world = with_texts()
    write_on(world, KvId(1), 0.1)
    world.begin()
    world.run(LIMIT_S, lambda: world.done)
    assert world.now_s < 5.0
    # Ask, relay, source and back, a few rows: no text waited for a copy of all its rows.
    assert world.longest_hold_s < 0.3
    world.check()
    world.check_end()


def test_what_was_copied_before_is_not_copied_again_by_the_catch_up() -> None:
    world = with_texts()
    write_on(world, KvId(1), 0.1)
    world.begin()
    world.run(LIMIT_S, lambda: world.done)
    moved_rows = sum(len(text.stamps) for text in world.texts.values())
    moved_groups = world.parts.moved_groups()
    assert moved_groups == 2
    assert world.relay.n_relayed_bytes <= 1.05 * 8 * moved_groups * moved_rows


def test_a_lost_bulk_link_goes_on_where_it_was() -> None:
    world = with_texts(faults=Faults(late_s=0.3))
    world.begin()
    for _ in range(12):
        world.run(0.4)
        for name in ("a", "b", "d"):
            world.renew_bulk(name)
    world.run(LIMIT_S, lambda: world.done)
    assert world.finished is not None
    assert world.finished.outcome is Outcome.MOVED
    world.check()
    world.check_end()


@pytest.mark.parametrize("moment_s", [0.05, 0.15, 0.3, 0.6, 1.0])
def test_cancel_leaves_the_old_plan_as_it_was(moment_s: float) -> None:
    world = with_texts(faults=Faults(late_s=0.3))
    write_on(world, KvId(1), 0.1)
    world.begin()
    world.run(moment_s)
    assert not world.commits
    world.tell(Cancel("changed my mind"))
    world.run(LIMIT_S, lambda: world.done)
    assert world.finished is not None
    assert world.finished.outcome is Outcome.ABORTED
    assert world.finished.reason == "changed my mind"
    assert all(world.epoch_of(kv_id) == OLD for kv_id in world.texts)
    world.check()
    world.check_end()


def test_a_target_without_room_aborts_with_its_reason() -> None:
    world = with_texts(refuses="d")
    world.begin()
    world.run(LIMIT_S, lambda: world.done)
    assert world.finished is not None
    assert world.finished.outcome is Outcome.ABORTED
    assert world.finished.reason == "agent 'd' cannot take its part: no memory"
    world.check()
    world.check_end()


def test_a_pool_without_pages_aborts_with_its_reason() -> None:
    world = with_texts()
    world.begin()
    world.run(0.11)
    pool = world.agents["d"].pools[NEW]
    pool._n_free = 0
    world.run(LIMIT_S, lambda: world.done)
    assert world.finished is not None
    assert world.finished.outcome is Outcome.ABORTED
    assert "agent 'd' cannot take what moves: context" in world.finished.reason
    assert "KV pages" in world.finished.reason
    world.check()


def test_a_silent_source_aborts() -> None:
    world = with_texts()
    world.relay.on_offer = lambda *_: []  # type: ignore[method-assign]
    world.begin()
    world.run(LIMIT_S, lambda: world.done)
    assert world.finished is not None
    assert world.finished.outcome is Outcome.ABORTED
    assert "made no progress in 20 s" in world.finished.reason
    world.check()
    world.check_end()


def test_prefill_is_moved_between_its_chunks() -> None:
    world = World(OLD_PLAN, NEW_PLAN)
    kv_id = world.open(10)
    assert kv_id is not None
    world.begin()
    for _ in range(60):
        if world.begin_step(kv_id, 3):
            world.run(0.05)
            world.end_step(kv_id, prefill=True)
        world.run(0.02)
    assert world.commits == [kv_id]
    assert len(world.texts[kv_id].stamps) > 100
    world.run(LIMIT_S, lambda: world.done)
    world.check()
    world.check_end()


def test_without_texts_the_plan_changes_at_once() -> None:
    world = World(OLD_PLAN, NEW_PLAN)
    world.begin()
    world.run(LIMIT_S, lambda: world.done)
    assert world.finished is not None
    assert world.finished.outcome is Outcome.MOVED
    assert world.now_s < 1.0
    world.check_end()


@pytest.mark.parametrize("victim", ["a", "b", "c", "d"])
@pytest.mark.parametrize("moment_s", [0.05, 0.3, 0.8, 1.2, 1.6, 2.0, 3.0])
def test_a_crash_at_any_moment_ends_it_within_bounds(victim: str, moment_s: float) -> None:
    world = with_texts(seed=int(100 * moment_s), faults=Faults(late_s=0.3))
    write_on(world, KvId(1), 0.1)
    world.begin()
    world.run(moment_s)
    world.crash(victim)
    world.run(LIMIT_S, lambda: world.done)
    assert world.finished is not None
    if world.finished.outcome is Outcome.MOVED:
        assert sorted(world.commits) == [1, 2, 3]
    else:
        assert world.finished.culprit == victim
        assert (world.finished.outcome is Outcome.BROKEN) == bool(world.commits)
    world.check()
    world.check_end()


@pytest.mark.parametrize("victim", ["a", "b", "c", "d"])
def test_a_crash_after_the_first_commit_breaks_both_plans(victim: str) -> None:
    world = with_texts()
    world.begin_step(KvId(1), 1)  # never at its boundary while the others change over
    world.begin()
    world.run(LIMIT_S, lambda: len(world.commits) == 2)
    assert not world.done
    world.check()
    world.crash(victim)
    world.run(LIMIT_S, lambda: world.done)
    assert world.finished is not None
    assert world.finished.outcome is Outcome.BROKEN
    assert world.finished.culprit == victim
    assert [world.epoch_of(KvId(i)) for i in (1, 2, 3)] == [OLD, NEW, NEW]
    # What the living have of either plan is whole: mirrors and prefill need as little as can be.
    world.end_step(KvId(1))
    world.check()


def test_after_the_first_commit_nobody_can_cancel() -> None:
    world = with_texts()
    world.begin_step(KvId(1), 1)
    world.begin()
    world.run(LIMIT_S, lambda: len(world.commits) == 2)
    world.tell(Cancel("too late"))
    world.end_step(KvId(1))
    world.run(LIMIT_S, lambda: world.done)
    assert world.finished is not None
    assert world.finished.outcome is Outcome.MOVED
    world.check()
    world.check_end()


def test_a_held_text_goes_on_when_its_last_rows_do_not_come() -> None:
    world = with_texts()
    world.begin_step(KvId(1), 3)
    world.begin()
    world.run(LIMIT_S, lambda: len(world.commits) == 2)
    world.faults.lost = 1.0
    world.end_step(KvId(1))
    assert KvId(1) in world.holds
    world.run(2.5, lambda: KvId(1) not in world.holds)
    assert KvId(1) not in world.holds
    assert world.begin_step(KvId(1), 1)
    world.end_step(KvId(1))
    world.faults.lost = 0.0
    world.run(LIMIT_S, lambda: world.done)
    assert world.finished is not None
    assert world.finished.outcome is Outcome.MOVED
    world.check()
    world.check_end()
