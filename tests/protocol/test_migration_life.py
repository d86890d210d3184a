"""Migrations in the middle of life: texts open, fork, grow, are cut and closed all the while."""

import random

import pytest

from coordinator.migration_events import Outcome
from tests.protocol.migration_boards import Faults, Where
from tests.protocol.migration_world import World

OLD_PLAN: Where = {"a": [(0, 0), (0, 1), (1, 0)], "b": [(0, 2), (1, 1)], "c": [(1, 2)]}
NEW_PLAN: Where = {"a": [(0, 0)], "b": [(0, 1), (0, 2), (1, 1)], "c": [(1, 2)], "d": [(1, 0)]}


class Life:
    """Does something to some text every now and then."""

    def __init__(self, world: World, seed: int, each_s: float) -> None:
        self.world, self.rng, self.each_s = world, random.Random(seed), each_s
        self.until_s = float("inf")
        self.again()

    def again(self) -> None:
        if self.world.now_s < self.until_s:
            self.act()
            self.world.at(self.each_s * self.rng.uniform(0.3, 1.7), self.again)

    def act(self) -> None:
        world, rng = self.world, self.rng
        kv_id = rng.choice(sorted(world.texts)) if world.texts else None
        what = rng.random()
        if kv_id is None or what < 0.08:
            world.open(rng.choice([0, 10, 64, 100]))
        elif what < 0.16:
            if not world.texts[kv_id].stepping:
                world.open(rng.randrange(1, 130), kv_id)
        elif what < 0.30:
            world.truncate(kv_id, rng.randrange(len(world.texts[kv_id].stamps) + 1))
        elif what < 0.35:
            world.close(kv_id)
        elif world.texts[kv_id].stepping:
            world.end_step(kv_id, rng.random() < 0.3)
        else:
            world.begin_step(kv_id, rng.choice([1, 1, 2, 20]))

    def end(self) -> None:
        self.until_s = self.world.now_s
        for kv_id in self.world.texts:
            self.world.end_step(kv_id)


@pytest.mark.parametrize("late_s", [0.05, 0.5])
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))]
)
def test_whatever_texts_do_they_arrive_whole(seed: int, late_s: float) -> None:
    world = World(OLD_PLAN, NEW_PLAN, seed, Faults(lost=0.1, doubled=0.2, late_s=late_s))
    for n_tokens in (120, 60):
        world.open(n_tokens)
    life = Life(world, seed, each_s=0.04 if late_s < 0.1 else 0.2)
    world.run(0.2)
    world.begin()
    for _ in range(60):
        world.run(0.25)
        world.check()
        if world.done:
            break
    life.end()
    world.run(600.0, lambda: world.done)
    assert world.finished is not None
    assert world.finished.outcome is Outcome.MOVED, world.finished.reason
    world.check()
    world.check_end()
