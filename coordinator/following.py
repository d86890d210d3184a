"""What follows the texts with a migration: the part that moves and mirrors have in common.

`migration` decides, `move` and `mirror` carry out what they are for. One thread uses either, the
one that owns the hot link; the control thread fills the queue of reports that they empty.
"""

import contextlib
import time
from abc import ABC, abstractmethod

from agent.ids import AgentName, Epoch, KvId, RunId
from agent.migration_messages import MoveEnd
from coordinator.control import Control
from coordinator.migration import Migration
from coordinator.migration_events import (
    Action,
    AtBoundary,
    Closed,
    Event,
    Finished,
    Reported,
    Send,
    Tick,
)
from coordinator.migration_parts import MoveParts
from kernels.errors import RemoteError

__all__ = ["Following"]


class Following(ABC):
    """Tells a migration what the texts and the agents do, and the agents what it wants.

    Args:
        run_id: number of this run.
        epoch: the plan to come, or what names the mirror.
        from_epoch: the plan in force.
        migration: the state machine, not begun.
        parts: who does what.
        control: carries orders and reports.

    Attributes:
        epoch: as given.
        from_epoch: as given.
        finished: how it ended; None while it goes on.
    """

    def __init__(
        self,
        run_id: RunId,
        epoch: Epoch,
        from_epoch: Epoch,
        migration: Migration,
        parts: MoveParts,
        control: Control,
    ) -> None:
        self._run_id = run_id
        self.epoch, self.from_epoch = epoch, from_epoch
        self._migration = migration
        self._parts = parts
        self._control = control
        self.finished: Finished | None = None

    @property
    def agents(self) -> frozenset[AgentName]:
        """All who take part."""
        return self._parts.old | self._parts.new

    def tell_off(self) -> None:
        """Tell the agents that it is over, and to free what it made them take; not awaited."""
        for name in sorted(self.agents):
            self._order(Send(name, MoveEnd(self._run_id, self.epoch, self.epoch)))

    # What the texts tell, see `texts.Follower`.

    def ended(self, kv_id: KvId, n_tokens: int, prefill: bool) -> None:
        """Note that a text is at a boundary."""
        self._happen(AtBoundary(kv_id, n_tokens, prefill))

    def closed(self, kv_id: KvId) -> None:
        """Note that a text is released."""
        self._happen(Closed(kv_id))

    def _look(self) -> None:
        """Take in what the agents reported, and that time has passed."""
        self._read()
        self._happen(Tick())

    def _read(self) -> None:
        """Take in what the agents reported."""
        for name, report in self._control.take_reports():
            self._happen(Reported(name, report))

    def _happen(self, event: Event) -> None:
        if self.finished is None:
            self._carry_out(self._migration.on_event(event, time.monotonic()))

    def _order(self, send: Send) -> None:
        with contextlib.suppress(RemoteError):  # its loss is told as a loss
            self._control.order(send.name, send.message)

    @abstractmethod
    def _carry_out(self, actions: list[Action]) -> None:
        """Do what the state machine wants."""
