"""Migrations under any order of events: texts open, fork, are cut and closed, boards die.

At every moment the rows that each text's plan needs are on their holders, unless a holder died;
no text is committed twice; nothing is freed before its time and nothing is left afterwards; and
once the network is good the migration ends.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from agent.ids import AgentName, KvId
from coordinator.migration_events import AgentRelinked, Cancel, Outcome
from tests.protocol.migration_boards import NEW, OLD, Faults, Where
from tests.protocol.migration_world import World

OLD_PLAN: Where = {"a": [(0, 0), (0, 1), (1, 0)], "b": [(0, 2), (1, 1)], "c": [(1, 2)]}
NEW_PLAN: Where = {"a": [(0, 0)], "b": [(0, 1), (0, 2), (1, 1)], "c": [(1, 2)], "d": [(1, 0)]}

picks = st.integers(0, 10)
names = st.sampled_from(["a", "b", "c", "d"])


class MigrationMachine(RuleBasedStateMachine):
    """One cluster of four boards, one migration."""

    def __init__(self) -> None:
        super().__init__()
        self.world = self.make_world()
        self.world.open(70)
        self.crashed: set[str] = set()
        self.cancelled = False

    def make_world(self) -> World:
        return World(OLD_PLAN, NEW_PLAN, faults=Faults(0.1, 0.1, 0.2))

    def text(self, pick: int) -> KvId | None:
        texts = sorted(self.world.texts)
        return texts[pick % len(texts)] if texts else None

    @property
    def whole(self) -> bool:
        """Whether texts can be written: nobody died, which ends what runs."""
        return not self.crashed

    @initialize(texts=st.lists(st.sampled_from([0, 3, 64, 100]), max_size=3), begins=st.booleans())
    def set_up(self, texts: list[int], begins: bool) -> None:
        for n_tokens in texts:
            self.world.open(n_tokens)
        if begins:
            self.world.begin()

    @precondition(lambda self: self.world.migration is None)
    @rule()
    def begin(self) -> None:
        self.world.begin()

    @rule(for_s=st.sampled_from([0.01, 0.05, 0.1, 0.3, 1.0]))
    def wait(self, for_s: float) -> None:
        self.world.run(for_s)

    @precondition(lambda self: self.whole)
    @rule(n_tokens=st.sampled_from([0, 3, 64, 100]))
    def open(self, n_tokens: int) -> None:
        self.world.open(n_tokens)

    @precondition(lambda self: self.whole)
    @rule(pick=picks, n_tokens=st.sampled_from([1, 40, 64, 190]))
    def fork(self, pick: int, n_tokens: int) -> None:
        kv_id = self.text(pick)
        if kv_id is not None and not self.world.texts[kv_id].stepping:
            self.world.open(n_tokens, kv_id)

    @precondition(lambda self: self.whole)
    @rule(pick=picks, n_rows=st.sampled_from([1, 1, 1, 2, 30]))
    def begin_step(self, pick: int, n_rows: int) -> None:
        kv_id = self.text(pick)
        if kv_id is not None:
            self.world.begin_step(kv_id, n_rows)

    @precondition(lambda self: self.whole)
    @rule(pick=picks, prefill=st.booleans())
    def end_step(self, pick: int, prefill: bool) -> None:
        kv_id = self.text(pick)
        if kv_id is not None:
            self.world.end_step(kv_id, prefill)

    @precondition(lambda self: self.whole)
    @rule(pick=picks, keep=st.sampled_from([0, 20, 64, 69, 100]))
    def truncate(self, pick: int, keep: int) -> None:
        kv_id = self.text(pick)
        if kv_id is not None:
            self.world.truncate(kv_id, keep)

    @precondition(lambda self: self.whole)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        kv_id = self.text(pick)
        if kv_id is not None:
            self.world.close(kv_id)

    @precondition(lambda self: self.world.migration is not None and not self.crashed)
    @rule(name=names)
    def crash(self, name: str) -> None:
        self.crashed.add(name)
        self.world.crash(name)

    @rule(name=names)
    def break_bulk(self, name: str) -> None:
        self.world.renew_bulk(name)

    @rule(name=names)
    def relink(self, name: str) -> None:
        if name not in self.crashed:
            self.world.tell(AgentRelinked(AgentName(name)))

    @precondition(lambda self: self.world.now_s > 1.5)
    @rule()
    def cancel(self) -> None:
        if self.world.migration is not None:
            self.cancelled = True
            self.world.tell(Cancel("nobody wants it"))

    @invariant()
    def every_row_is_where_its_plan_says(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        world = self.world
        if world.migration is None:
            return
        assert self.world.longest_hold_s < 2.5  # PACE.hold_s and a tick
        world.faults = Faults()
        for kv_id in list(world.texts):
            world.end_step(kv_id)
        world.run(60.0, lambda: world.done)
        assert world.finished is not None, "it does not end on a good network"
        if not self.crashed and not self.cancelled:
            assert world.finished.outcome is Outcome.MOVED, world.finished.reason
        epochs = {world.epoch_of(kv_id) for kv_id in world.texts}
        if world.finished.outcome is Outcome.BROKEN:
            assert self.crashed == {world.finished.culprit}
        else:
            assert epochs <= {NEW if world.finished.outcome is Outcome.MOVED else OLD}
        assert not world.holds
        world.check()
        world.check_end()


MigrationMachine.TestCase.settings = settings(
    max_examples=15, stateful_step_count=40, deadline=None
)
TestMigrationMachine = MigrationMachine.TestCase
