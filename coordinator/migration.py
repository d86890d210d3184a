"""Moving texts from one plan to the next while they are written: events in, actions out.

    PREPARING --(all targets have nearly all of every text)--> SWITCHING --(last text)--> ENDING
        |                                                          |
        +--(refusal, loss, stall, Cancel)--> ENDING, the new epoch is freed
                                                                   +--(loss, stall)--> BROKEN

Until a text's COMMIT its old epoch is whole and in use; COMMIT is one decision of this machine,
taken when every target has said that it has every row. Before the first COMMIT all can be undone;
after it the rest follows, or an agent's loss breaks both plans. `docs/migration.md` has the
protocol. Pure: its owner carries the actions out and tells what happens.
"""

from collections.abc import Iterable
from enum import Enum

from agent.ids import AgentName, Epoch, KvId, RunId
from agent.migration_messages import (
    Arrive,
    Begun,
    Depart,
    Have,
    MoveEnd,
    MoveEnded,
    MoveFailed,
    MoveReport,
)
from coordinator.migration_events import (
    Action,
    AgentFailed,
    AgentLost,
    AgentReady,
    AgentRelinked,
    Assign,
    AtBoundary,
    Cancel,
    Closed,
    Commit,
    Event,
    Finished,
    Hold,
    Opened,
    Outcome,
    Reported,
    Resume,
    Send,
    Stepping,
    Tick,
    Truncated,
)
from coordinator.migration_orders import News, Pace, is_due, want_of
from coordinator.migration_parts import MoveParts
from coordinator.migration_text import Copy, Text, laggard, owing, progress_of

__all__ = ["Migration", "Pace", "State"]


class State(Enum):
    """Where a migration stands."""

    PREPARING = "preparing"
    SWITCHING = "switching"
    ENDING = "ending"
    DONE = "done"


class Migration:
    """One migration.

    Args:
        run_id: the coordinator's.
        from_epoch: the plan in force.
        epoch: the plan to come; names the migration.
        parts: who does what.
        now_s: monotonic time.
        pace: deadlines.
        mirrors: never to let a text change over: a second copy is kept of rows as they come.

    Attributes:
        state: where it stands.
        n_moved: texts that have changed over, or were opened in the new epoch.
    """

    def __init__(
        self,
        run_id: RunId,
        from_epoch: Epoch,
        epoch: Epoch,
        parts: MoveParts,
        now_s: float,
        pace: Pace | None = None,
        mirrors: bool = False,
    ) -> None:
        self._run_id = run_id
        self._from_epoch = from_epoch
        self._epoch = epoch
        self._parts = parts
        self._pace = pace or Pace()
        self._mirrors = mirrors
        self._texts: dict[KvId, Text] = {}
        self._unready = set(parts.targets)
        self._unbegun: dict[tuple[AgentName, bool], float] = {
            **{(name, True): float("-inf") for name in sorted(parts.targets)},
            **{(name, False): float("-inf") for name in sorted(parts.sources)},
        }
        self._lost: set[AgentName] = set()
        self._due_s = now_s + self._pace.prepare_s
        self._news = News(now_s, self._pace.look_s)
        self._end: Finished | None = None
        self._unended: dict[AgentName, float] = {}
        self.state = State.PREPARING
        self.n_moved = 0

    def begin(self, texts: Iterable[Opened], now_s: float) -> list[Action]:
        """Begin with the texts that are open; all of them at a boundary or `Stepping` next."""
        assigns: list[Action] = [Assign(name) for name in sorted(self._unready)]
        for text in texts:
            self._open(text)
        return [*assigns, *self._go_on(now_s)]

    def epoch_of(self, kv_id: KvId) -> Epoch:
        """Return the epoch in which a text is written; of an unknown one, where it would open."""
        text = self._texts.get(kv_id)
        moved = self.opens_new if text is None else text.moved
        return self._epoch if moved else self._from_epoch

    def may_step(self, kv_id: KvId) -> bool:
        """Tell whether a step of the text may begin."""
        text = self._texts.get(kv_id)
        return text is None or text.held_s is None

    @property
    def opens_new(self) -> bool:
        """Whether new texts are opened in the new epoch."""
        if self.state in (State.ENDING, State.DONE):
            return self._end is not None and self._end.outcome is not Outcome.ABORTED
        # Until every target has let go of what was cut or closed, it may lack the room.
        return self.state is State.SWITCHING and not owing(self._texts.values())

    @property
    def progress_tokens(self) -> tuple[int, int]:
        """Rows that the slowest targets have and rows to have, over all texts; for status."""
        return progress_of(self._texts.values())

    def rows_at(self, kv_id: KvId, name: AgentName) -> int:
        """Return how many rows of a text a target is known to have."""
        text = self._texts.get(kv_id)
        return 0 if text is None else text.rows_at(name)

    def on_event(self, event: Event, now_s: float) -> list[Action]:
        """Take one event and return what to do about it, in order."""
        if self.state is State.DONE:
            return []
        match event:
            case Opened():
                self._open(event)
            case AtBoundary() | Stepping() | Truncated() | Closed():
                self._on_text(event)
            case Reported(name, message):
                return self._on_report(name, message, now_s)
            case AgentReady(name):
                self._unready.discard(name)
                self._news.note(now_s)
            case AgentLost(name, reason):
                return self._on_lost(name, reason, now_s)
            case AgentRelinked(name):
                self._forget_sent(name)
            case AgentFailed(name, reason):
                return self._give_up(f"agent {name!r} cannot take its part: {reason}", name, now_s)
            case Cancel(reason) if not self.n_moved:
                return self._give_up(reason, None, now_s)
            case Tick():
                # Not with what a text tells: what agents have said meanwhile may not be read yet.
                return self._overdue(now_s) or self._go_on(now_s)
        return self._go_on(now_s)

    # Texts.

    def _open(self, event: Opened) -> None:
        text = Text(event.kv_id, event.n_tokens, event.reserve_tokens)
        parent = None if event.fork_of is None else self._texts.get(event.fork_of)
        # A child is written where its parent's rows are.
        text.moved = self.opens_new if parent is None else parent.moved
        if parent is not None and self.state is State.PREPARING:
            text.fork_of, text.fork_tokens = parent.kv_id, event.fork_tokens
            text.fork_version = parent.version
        self.n_moved += text.moved  # the old epoch will not have its rows
        if not text.moved:
            text.copies = {name: Copy() for name in sorted(self._parts.targets - self._lost)}
        self._texts[event.kv_id] = text

    def _on_text(self, event: AtBoundary | Stepping | Truncated | Closed) -> None:
        text = self._texts.get(event.kv_id)
        if text is None or text.gone:
            return
        match event:
            case Stepping():
                text.at_rest = False
            case AtBoundary(_, n_tokens, prefill):
                text.at_rest, text.prefill = True, prefill
                text.n_tokens = max(text.n_tokens, n_tokens)
            case Truncated(_, n_tokens):
                text.at_rest = True
                text.cut(n_tokens)
            case Closed():
                text.held_s = None
                if text.moved:
                    del self._texts[text.kv_id]
                else:
                    text.end()

    # Agents.

    def _on_report(self, name: AgentName, message: MoveReport, now_s: float) -> list[Action]:
        if (message.run_id, message.epoch) != (self._run_id, self._epoch):
            return []
        match message:
            case Begun(arrives=arrives):
                if self._unbegun.pop((name, arrives), None) is not None:
                    self._news.note(now_s)
            case Have():
                text = self._texts.get(KvId(message.kv_id))
                if text is not None and not text.moved and text.on_have(name, message):
                    self._news.note(now_s)
            case MoveFailed(reason=reason):
                text_ = f"agent {name!r} cannot take what moves: {reason}"
                return self._give_up(text_, name, now_s)
            case MoveEnded():
                self._unended.pop(name, None)
        return self._go_on(now_s)

    def _on_lost(self, name: AgentName, reason: str, now_s: float) -> list[Action]:
        if name not in self._parts.old | self._parts.new:
            return []
        self._lost.add(name)
        self._unended.pop(name, None)
        return self._give_up(f"agent {name!r} was lost: {reason}", name, now_s)

    def _forget_sent(self, name: AgentName) -> None:
        """Make all orders to an agent due again."""
        self._unbegun |= {key: float("-inf") for key in self._unbegun if key[0] == name}
        if name in self._unended:
            self._unended[name] = float("-inf")
        for copies in (text.copies for text in self._texts.values() if name in text.copies):
            copies[name].sent_s = float("-inf")

    # Progress.

    def _go_on(self, now_s: float) -> list[Action]:
        if self.state is State.ENDING:
            return self._end_orders(now_s)
        actions = self._begin_orders(now_s)
        if self.state is State.PREPARING and not self._mirrors and self._prepared():
            self.state = State.SWITCHING
        if self.state is State.SWITCHING:
            for text in self._texts.values():
                actions += self._switch(text, now_s)
        actions += self._wants(now_s)
        self._texts = {k: t for k, t in self._texts.items() if not (t.gone and t.settled)}
        if self.state is State.SWITCHING and all(t.moved for t in self._texts.values()):
            actions += self._start_end(Finished(Outcome.MOVED, ""), self._from_epoch, now_s)
        return actions

    def _prepared(self) -> bool:
        if self._unready or self._unbegun:
            return False
        return all(t.answered and self._is_close(t) for t in self._texts.values())

    def _is_close(self, text: Text) -> bool:
        pace = self._pace
        most = pace.prefill_pause_tokens if text.prefill else pace.pause_tokens
        return text.lag_tokens() <= most

    def _switch(self, text: Text, now_s: float) -> list[Action]:
        """Hold a text that is close, commit it when all is there, let it go on if that fails."""
        if text.moved or text.gone or not text.at_rest:
            return []
        actions: list[Action] = []
        if text.held_s is None:
            if now_s < text.not_before_s or not (text.answered and self._is_close(text)):
                return []
            text.held_s = now_s
            actions.append(Hold(text.kv_id))
        if text.answered and text.lag_tokens() <= 0:
            return [*actions, self._commit(text, now_s)]
        if now_s - text.held_s >= self._pace.hold_s:
            text.held_s, text.not_before_s = None, now_s + self._pace.retry_s
            return [*actions, Resume(text.kv_id)]
        return actions

    def _commit(self, text: Text, now_s: float) -> Action:
        text.moved, text.held_s = True, None
        text.copies.clear()
        self.n_moved += 1
        self._news.note(now_s)
        leaves = self._parts.old - self._parts.kept - self._lost
        return Commit(text.kv_id, tuple(sorted(leaves)))

    def _overdue(self, now_s: float) -> list[Action]:
        """Give up what takes too long; nothing to do if it does not, or if all is over."""
        pace, silent_s = self._pace, self._news.silent_s(now_s)
        if self.state is State.PREPARING and now_s >= self._due_s:
            why = f"not prepared within {pace.prepare_s:.0f} s"
            return self._give_up(why, self._laggard(), now_s)
        if not (self._unbegun or any(t.is_behind for t in self._texts.values())):
            self._news.note(now_s)
        elif not self._unready and self.state is not State.ENDING and silent_s >= pace.stall_s:
            for_s, name = pace.stall_s, self._laggard()
            return self._give_up(f"agent {name!r} made no progress in {for_s:.0f} s", name, now_s)
        return []

    def _laggard(self) -> AgentName | None:
        """Return who has kept the others waiting."""
        for name in sorted(self._unready):
            return name
        for name, _ in sorted(self._unbegun):
            return name
        return laggard(self._texts.values())

    # Orders.

    def _begin_orders(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        shares, args = self._parts.shares, (self._run_id, self._epoch, self._from_epoch)
        for (name, arrives), sent_s in self._unbegun.items():
            # Sources are told at once: they have all it takes.
            if now_s - sent_s < self._pace.resend_s or (arrives and self._unready):
                continue
            self._unbegun[name, arrives] = now_s
            if arrives:
                mine = tuple(s for s in shares if s.target == name)
                actions.append(Send(name, Arrive(*args, mine, mirror=self._mirrors)))
            else:
                mine = tuple(s for s in shares if s.source == name and not s.local)
                actions.append(Send(name, Depart(*args, mine, mirror=self._mirrors)))
        return actions

    def _is_told(self, name: AgentName) -> bool:
        """Whether a target knows of its part; of a mirror's it does when the pool is there."""
        sent_s = self._unbegun.get((name, True))
        return sent_s is None or (not self._mirrors and sent_s != float("-inf"))

    def _wants(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        owe = owing(self._texts.values())
        for text in self._texts.values():
            for name, copy in text.copies.items():
                # What frees room goes first: a target has no more of it than the sources.
                if name in owe and (copy.asked_version < 0 or copy.version == text.version):
                    continue
                if self._is_told(name) and is_due(text, copy, self._pace, now_s):
                    copy.asked, copy.asked_version = text.n_tokens, text.version
                    copy.urgent, copy.sent_s = text.held_s is not None, now_s
                    want = want_of(text, copy, self._run_id, self._epoch, self._parent(text))
                    actions.append(Send(name, want))
        return actions

    def _parent(self, text: Text) -> Text | None:
        """Return the text whose rows at a target may be shared, as long as none changes over."""
        if text.fork_of is None or self.state is not State.PREPARING:
            return None
        return self._texts.get(text.fork_of)

    # The end.

    def _give_up(self, reason: str, culprit: AgentName | None, now_s: float) -> list[Action]:
        """Undo what can be undone; after the first COMMIT, say that both plans are broken."""
        if self.state is State.ENDING:
            return self._go_on(now_s)
        actions: list[Action] = []
        for text in self._texts.values():
            if text.held_s is not None:
                text.held_s = None
                actions.append(Resume(text.kv_id))
        if self.n_moved:
            self.state = State.DONE
            self._end = Finished(Outcome.BROKEN, reason, culprit)
            return [*actions, self._end]
        actions += self._start_end(Finished(Outcome.ABORTED, reason, culprit), self._epoch, now_s)
        return actions

    def _start_end(self, end: Finished, frees: Epoch, now_s: float) -> list[Action]:
        self.state = State.ENDING
        self._end, self._frees = end, frees
        self._due_s = now_s + self._pace.end_s
        here = (self._parts.old | self._parts.new) - self._lost
        self._unended = dict.fromkeys(sorted(here), float("-inf"))
        return self._end_orders(now_s)

    def _end_orders(self, now_s: float) -> list[Action]:
        assert self._end is not None
        if not self._unended or now_s >= self._due_s:
            self.state = State.DONE
            return [self._end._replace(unfreed=frozenset(self._unended))]
        actions: list[Action] = []
        for name, sent_s in self._unended.items():
            if now_s - sent_s >= self._pace.resend_s:
                self._unended[name] = now_s
                actions.append(Send(name, MoveEnd(self._run_id, self._epoch, self._frees)))
        return actions
