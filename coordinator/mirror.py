"""One mirror of the plan in force, carried out: `migration` says what to ask for, this file asks.

It follows the texts (`texts.Follower`) and never holds one. One thread uses it, the one that owns
the hot link.
"""

import contextlib
import logging
import time
from collections.abc import Iterable

from agent.ids import AgentName, Epoch, KvId, RunId
from agent.migration_messages import MoveEnd
from coordinator.control import Control
from coordinator.engine import Engine
from coordinator.migration import Migration, Pace
from coordinator.migration_events import (
    Action,
    AgentReady,
    AtBoundary,
    Closed,
    Event,
    Finished,
    Opened,
    Reported,
    Send,
    Tick,
)
from coordinator.migration_parts import MoveParts
from coordinator.mirroring import Mirroring
from coordinator.texts import Text
from kernels.errors import RemoteError

__all__ = ["Mirror"]

log = logging.getLogger(__name__)

# It is never done; who makes no progress for so long is not asked any more.
PACE = Pace(prepare_s=float("inf"), stall_s=30.0)


class Mirror:
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
        finished: why it has ended by itself; None while it goes on.
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
        self._run_id = run_id
        self._parts = parts
        self._control = control
        self._engine = engine
        self._migration = Migration(
            run_id, from_epoch, epoch, parts, time.monotonic(), PACE, mirrors=True
        )
        self.epoch, self.from_epoch, self.mirroring = epoch, from_epoch, mirroring
        self.finished: Finished | None = None

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
        for name, report in self._control.take_reports():
            self._happen(Reported(name, report))
        self._happen(Tick())
        return self.finished

    def rows_at(self, kv_id: KvId, name: AgentName) -> int:
        """Return how many rows of a text a mirror is known to have."""
        return self._migration.rows_at(kv_id, name)

    def tell_off(self) -> None:
        """Tell the agents that it is over, and to free its pools; not awaited."""
        end = MoveEnd(self._run_id, self.epoch, self.epoch)
        for name in sorted(self._parts.old | self._parts.new):
            with contextlib.suppress(RemoteError):
                self._control.order(name, end)

    # What the texts tell, see `texts.Follower`.

    def engine_for_new(self) -> Engine:
        """Return what a text that opens now is written by."""
        return self._engine

    def opened(self, kv_id: KvId, reserve_tokens: int) -> None:
        """Note that a text is open, without rows."""
        self._happen(Opened(kv_id, 0, reserve_tokens))

    def begins(self, kv_id: KvId) -> None:
        """Let it: nothing waits for a mirror."""

    def ended(self, kv_id: KvId, n_tokens: int, prefill: bool) -> None:
        """Note that a text is at a boundary."""
        self._happen(AtBoundary(kv_id, n_tokens, prefill))

    def closed(self, kv_id: KvId) -> None:
        """Note that a text is released."""
        self._happen(Closed(kv_id))

    def _happen(self, event: Event) -> None:
        if self.finished is None:
            self._carry_out(self._migration.on_event(event, time.monotonic()))

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(name, message):
                    with contextlib.suppress(RemoteError):  # its loss is the plan's
                        self._control.order(name, message)
                case Finished():
                    self.finished = action
