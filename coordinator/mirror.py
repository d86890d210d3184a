"""One mirror of the plan in force, carried out: `migration` says what to ask for, this file asks.

It follows the texts (`texts.Follower`) and never holds one.
"""

import time
from collections.abc import Iterable

from agent.ids import AgentName, Epoch, KvId, RunId
from coordinator.control import Control
from coordinator.engine import Engine
from coordinator.following import Following
from coordinator.migration import Migration, Pace, State
from coordinator.migration_events import Action, AgentReady, Finished, Opened, Send
from coordinator.migration_parts import MoveParts
from coordinator.mirroring import Mirroring
from coordinator.texts import Text

__all__ = ["Mirror"]

# It is never done; who makes no progress for so long is not asked for a while. Nobody looks while a
# step takes its time, or between two texts.
PACE = Pace(prepare_s=float("inf"), stall_s=30.0, look_s=1.0)


class Mirror(Following):
    """Keeps a second copy of what the members of a plan hold.

    Args:
        run_id: number of this run.
        epoch: names the mirror.
        from_epoch: the plan in force.
        mirroring: who mirrors whom.
        parts: the same as head groups.
        control: carries orders and reports.
        engine: of the plan in force.

    Attributes:
        mirroring: as given.
    """

    def __init__(
        self,
        run_id: RunId,
        epoch: Epoch,
        from_epoch: Epoch,
        mirroring: Mirroring,
        parts: MoveParts,
        control: Control,
        engine: Engine,
    ) -> None:
        migration = Migration(
            run_id, from_epoch, epoch, parts, time.monotonic(), PACE, mirrors=True
        )
        super().__init__(run_id, epoch, from_epoch, migration, parts, control)
        self.mirroring = mirroring
        self._engine = engine

    @property
    def lag_tokens(self) -> int:
        """Rows that the slowest mirrors lack, over all texts."""
        have, want = self._migration.progress_tokens
        return want - have

    def begin(self, texts: Iterable[Text]) -> None:
        """Begin with the texts that are open."""
        self._control.take_reports()
        opened = [Opened(t.kv_id, t.n_tokens, t.reserve_tokens) for t in texts]
        self._carry_out(self._migration.begin(opened, time.monotonic()))
        for name in sorted(self._parts.targets):
            self._happen(AgentReady(name))

    def poll(self) -> Finished | None:
        """Take in what has come since; return how it ended, if it has."""
        self._look()
        return self.finished

    def take_in(self) -> bool:
        """Take in what the agents have reported; tell whether they still keep their copies.

        One that has failed is told off: its pools are gone, or soon will be. That time has passed
        is no reason to tell it off at the moment when it is needed.
        """
        self._read()
        return self.finished is None and self._migration.state is State.PREPARING

    def rows_at(self, kv_id: KvId, name: AgentName) -> int:
        """Return how many rows of a text a mirror is known to have."""
        return self._migration.rows_at(kv_id, name)

    # What the texts tell, see `texts.Follower`.

    def engine_for_new(self) -> Engine:
        """Return what a text that opens now is written by."""
        return self._engine

    def opened(self, kv_id: KvId, reserve_tokens: int) -> None:
        """Note that a text is open, without rows."""
        self._happen(Opened(kv_id, 0, reserve_tokens))

    def begins(self, kv_id: KvId) -> None:
        """Let it: nothing waits for a mirror."""

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._order(action)
                case Finished():
                    self.finished = action
