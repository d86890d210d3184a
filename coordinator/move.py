"""One migration being carried out: `migration` decides, this file does it.

It follows the texts (`texts.Follower`): tells the state machine where each text stands, lets a
text wait while its last rows are on their way, and hands it to the new plan's engine at its
COMMIT.
"""

import contextlib
import logging
import time
from collections.abc import Callable

import msgspec

from agent.ids import AgentName, Epoch, KvId, RunId
from agent.kv_ops import KvOp, KvOpCode
from agent.migration_messages import FIRST_BYTES, Arrive
from coordinator.control import Control
from coordinator.engine import Engine
from coordinator.following import Following
from coordinator.migration import Migration, State
from coordinator.migration_events import (
    Action,
    AgentFailed,
    AgentLost,
    AgentReady,
    Assign,
    AtBoundary,
    Commit,
    Finished,
    Hold,
    Opened,
    Outcome,
    Resume,
    Send,
    Stepping,
)
from coordinator.migration_parts import MoveParts
from coordinator.prepared import Prepared
from coordinator.status import MoveStatus
from coordinator.texts import Text, Texts
from kernels.errors import RemoteError

__all__ = ["WAIT_S", "Move"]

log = logging.getLogger(__name__)

# How long a text that is held waits for reports before the clock is looked at again.
WAIT_S = 0.02


class Move(Following):
    """Moves the open texts from the plan in force to the one to come.

    Args:
        run_id: number of this run.
        migration: its state machine, not begun.
        prepared: the plan to come.
        parts: who does what.
        from_epoch: the plan in force.
        control: carries orders and reports.
        texts: those that are open.
        engine: of the plan in force.
        first_bytes: how much a target may ask for before an answer tells it; 0 = no limit.

    Attributes:
        prepared: as given.
        new_engine: of the plan to come, once all its members are ready.
        longest_hold_s: how long a text has waited for its last rows at most.
    """

    def __init__(
        self,
        run_id: RunId,
        migration: Migration,
        prepared: Prepared,
        parts: MoveParts,
        from_epoch: Epoch,
        control: Control,
        texts: Texts,
        engine: Engine,
        first_bytes: Callable[[], int] = lambda: FIRST_BYTES,
    ) -> None:
        super().__init__(run_id, prepared.epoch, from_epoch, migration, parts, control)
        self.prepared = prepared
        self._texts = texts
        self._engine = engine
        self._first_bytes = first_bytes
        self._held_s: dict[KvId, float] = {}
        self.new_engine: Engine | None = None
        self.longest_hold_s = 0.0

    @property
    def targets(self) -> frozenset[AgentName]:
        """Members of the plan to come that get a KV pool for it."""
        return self._parts.targets

    @property
    def is_past(self) -> bool:
        """Whether all texts have changed over: agents are freeing the plan that was in force."""
        ending = self._migration.state in (State.ENDING, State.DONE)
        broken = self.finished is not None and self.finished.outcome is Outcome.BROKEN
        return ending and self._migration.opens_new and not broken

    @property
    def has_moved(self) -> bool:
        """Whether a text has changed over, or all have: what is called off now costs its plan."""
        return self._migration.n_moved > 0 or self.is_past

    def view(self) -> MoveStatus:
        """Return how far it is, for people."""
        have, want = self._migration.progress_tokens
        parts = self._parts
        state = self._migration.state.value
        return MoveStatus(self.epoch, self.from_epoch, parts.moved_groups(), have, want, state)

    def begin(self) -> None:
        """Assign the members of the plan to come their parts; the texts go on meanwhile."""
        # A token of a slow cluster takes longer than all that is to be done besides.
        self._engine.between = self.poll
        self._control.take_reports()
        # A text that has lost its plan and has not been written since has no rows to be moved.
        here = [text for text in self._texts.here() if text.engine is self._engine]
        opened = [Opened(t.kv_id, t.n_tokens, t.reserve_tokens) for t in here]
        # Members that keep their rows need a new rank only; `migration` does not know them.
        self._carry_out([Assign(name) for name in sorted(self._parts.kept)])
        self._carry_out(self._migration.begin(opened, time.monotonic()))
        for text in opened:
            self._happen(AtBoundary(text.kv_id, text.n_tokens, prefill=False))

    def end(self) -> None:
        """Look at nothing any more."""
        self._engine.between = None
        if self.new_engine is not None:
            self.new_engine.between = None

    def poll(self) -> Finished | None:
        """Take in what has come since; return how it ended, once it has."""
        if self.finished is None:
            try:
                self._go_on()
            except Exception as e:
                # A text can do without this plan; whoever looks at moves all day cannot stop.
                log.exception("move went wrong epoch=%d", self.epoch)
                what = f"internal error: {type(e).__name__}; the log says more"
                outcome = Outcome.BROKEN if self._migration.n_moved else Outcome.ABORTED
                self.finished = Finished(outcome, what)
                self.tell_off()
        return self.finished

    def _go_on(self) -> None:
        self._look_at_agents()
        self._look()

    # What the texts tell, see `texts.Follower`.

    def engine_for_new(self) -> Engine:
        """Return what a text that opens now is written by."""
        new = self.new_engine if self._migration.opens_new else None
        return new or self._engine

    def opened(self, kv_id: KvId, reserve_tokens: int) -> None:
        """Note that a text is open, without rows."""
        self._happen(Opened(kv_id, 0, reserve_tokens))
        self._happen(AtBoundary(kv_id, 0))

    def may_step(self, kv_id: KvId) -> bool:
        """Tell whether a step of a text may begin: it is not held."""
        return self.finished is not None or self._migration.may_step(kv_id)

    def begins(self, kv_id: KvId) -> None:
        """Wait while a text is held, and note that it steps."""
        self.poll()
        while not self.may_step(kv_id):
            self._control.wait_reports(WAIT_S)
            self.poll()
        self._happen(Stepping(kv_id))

    # The state machine's actions.

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Assign(name):
                    with contextlib.suppress(RemoteError):  # its loss is told as a loss
                        self._control.assign({name: self.prepared.told[name]})
                case Send(name, Arrive() as message):
                    first_bytes = self._first_bytes()
                    told = msgspec.structs.replace(message, window_bytes=first_bytes)
                    self._order(Send(name, told))
                case Send():
                    self._order(action)
                case Hold(kv_id):
                    self._held_s[kv_id] = time.monotonic()
                case Resume(kv_id):
                    self._held_s.pop(kv_id, None)
                    log.info("kv_id=%d is not moved yet: its last rows are late", kv_id)
                case Commit(kv_id, leaves):
                    self._commit(kv_id, leaves)
                case Finished():
                    self.finished = action

    def _commit(self, kv_id: KvId, leaves: tuple[AgentName, ...]) -> None:
        held_s = time.monotonic() - self._held_s.pop(kv_id, time.monotonic())
        self.longest_hold_s = max(self.longest_hold_s, held_s)
        text: Text | None = self._texts.get(kv_id)
        if text is None:
            return
        assert self.new_engine is not None, "no text changes over before all are ready"
        # First: whatever interrupts the next line, the text is released where its rows are.
        text.engine = self.new_engine
        with contextlib.suppress(RemoteError):
            self._engine.control_kv([KvOp(KvOpCode.RELEASE, kv_id)], leaves)
        log.info("kv_id=%d moved epoch=%d held_ms=%.1f", kv_id, self.epoch, 1e3 * held_s)

    def _look_at_agents(self) -> None:
        for name, reason in self._control.losses():
            self._happen(AgentLost(name, reason))
        if self.new_engine is not None:
            return
        link, names = self.prepared.link, self.prepared.told
        link.take_hellos()
        for name in names:
            reason = self._control.failure(name, self.epoch)
            if reason:
                self._happen(AgentFailed(name, reason))
        # READY and HELLO come on different links. Nobody changes over before all have said both.
        if link.joined and all(self._control.is_ready(name, self.epoch) for name in names):
            self.new_engine = self.prepared.make_engine()
            self.new_engine.between = self.poll
            for name in sorted(names):
                self._happen(AgentReady(name))
