"""Mirrors under any order of events: what they are said to have is there and right.

Texts are never held back and never change over; whoever dies, the rows that are said to be left
are found where the next plan looks for them; and once the network is good nothing is lacking.
"""

import pytest
from hypothesis import settings
from hypothesis.stateful import invariant

from agent.ids import AgentName, KvId
from tests.protocol.migration_boards import Faults
from tests.protocol.mirror_world import MirrorWorld
from tests.protocol.test_migration_machine import OLD_PLAN, MigrationMachine

# One agent mirrors two others, and one of them has nothing of its own.
HOLDER_OF = {"a": "b", "b": "d", "c": "b"}
PLAN = OLD_PLAN | {"d": []}


class MirrorMachine(MigrationMachine):
    """One cluster of four boards, one mirror."""

    world: MirrorWorld

    def make_world(self) -> MirrorWorld:
        return MirrorWorld(PLAN, HOLDER_OF, Faults(0.1, 0.1, 0.2))

    @invariant()
    def what_is_left_is_right(self) -> None:
        if self.world.migration is None or self.cancelled:
            return
        for kv_id in self.world.texts:
            for lost in PLAN:
                self.world.rows_after(kv_id, lost)

    def teardown(self) -> None:
        world = self.world
        assert not world.commits
        assert not world.longest_hold_s
        if world.migration is None or self.crashed:
            return
        world.faults = Faults()
        for kv_id in list(world.texts):
            world.end_step(kv_id)
        world.run(60.0, lambda: world.done)
        assert world.done == self.cancelled
        world.check()
        if not self.cancelled:
            for kv_id, text in world.texts.items():
                assert all(world.rows_after(kv_id, lost) == len(text.stamps) for lost in PLAN)


MirrorMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=40, deadline=None)
TestMirrorMachine = MirrorMachine.TestCase


def mirrored(n_tokens: int) -> MirrorWorld:
    world = MirrorWorld(PLAN, HOLDER_OF)
    world.open(n_tokens)
    world.begin()
    return world


@pytest.mark.parametrize("lost", ["a", "b", "c", "d"])
def test_a_mirror_stays_a_few_rows_behind_a_text(lost: str) -> None:
    world, kv_id = mirrored(70), KvId(1)
    world.run(2.0)
    assert world.rows_after(kv_id, lost) == 70
    for _ in range(60):
        assert world.begin_step(kv_id, 1), "a mirror holds no text"
        world.run(0.05)
        world.end_step(kv_id)
        left = world.rows_after(kv_id, lost)
        assert left is not None
        assert len(world.texts[kv_id].stamps) - left < 25
    world.run(2.0)
    assert world.rows_after(kv_id, lost) == 130


def test_of_two_that_are_lost_one_with_the_others_copy_nothing_is_left() -> None:
    world, kv_id = mirrored(70), KvId(1)
    world.run(2.0)
    world.crash("b")
    assert world.rows_after(kv_id, "c") is None
    assert world.rows_after(kv_id, "a") is None
    assert world.rows_after(kv_id, "b") == 70


def test_rows_that_are_cut_off_are_not_said_to_be_left() -> None:
    world, kv_id = mirrored(70), KvId(1)
    world.run(2.0)
    world.truncate(kv_id, 40)
    assert world.rows_after(kv_id, "a") == 0
    world.begin_step(kv_id, 3)
    world.end_step(kv_id)
    world.run(2.0)
    assert world.rows_after(kv_id, "a") == 43
    assert world.migration is not None
    assert world.migration.rows_at(KvId(99), AgentName("b")) == 0
