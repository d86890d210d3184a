"""The agent's side of the control channel as a state machine: events in, actions out.

    WAITING --(retry time)--> DIALLING --(Welcome)--> JOINED --(link lost)--> WAITING

An agent serves one run of one coordinator. When the link breaks it stops computing and frees its
KV, keeps its weights mapped, and dials again with a new socket and a new HELLO, for ever. While
head groups move (`moves`) it holds two epochs, of which each serves its texts. Pure: `runtime`
turns sockets, signals and the clock into events and carries the actions out.
"""

import random
from enum import Enum
from typing import NamedTuple

from agent.events import (
    Action,
    Adopt,
    BulkReceived,
    BulkUp,
    CancelLoad,
    CloseHot,
    CloseMoves,
    Dial,
    Drop,
    Event,
    Exit,
    HangUp,
    Joined,
    LinkLost,
    LinkUp,
    Load,
    Loaded,
    LoadFailed,
    LoadKey,
    OpenHot,
    PoolFailed,
    Probe,
    Progress,
    Received,
    Rejected,
    Reserved,
    RowsMissing,
    RowsPlaced,
    RowsRead,
    Send,
    SendHeartbeat,
    SpeedChanged,
    Stop,
    Tick,
    Warn,
)
from agent.ids import Epoch, RunId
from agent.kv_shape import KvShape
from agent.messages import (
    Assignment,
    Bye,
    CoordinatorMessage,
    Failed,
    Hello,
    Loading,
    ProbeLink,
    Ready,
    Refused,
    Release,
    Shutdown,
    Versions,
    Welcome,
)
from agent.migration_messages import Arrive, Depart, MoveEnd, Want
from agent.moves import Moves

__all__ = ["Link", "Session"]

MIN_RETRY_S = 0.2
MAX_RETRY_S = 5.0
# How long a dial may take until WELCOME; then the host name is resolved anew.
DIAL_S = 5.0
MAX_EPOCHS = 2


class Link(Enum):
    """Where the control link stands."""

    WAITING = 0
    DIALLING = 1
    JOINED = 2


class _Held(NamedTuple):
    """An epoch that is loaded: what to say of it, and the shape of its KV pool."""

    ready: Ready
    shape: KvShape


class Session:
    """State of one agent process towards its coordinator.

    Args:
        hello: what to say after dialling.
        coordinator: the address, for texts.
        rng: spreads the retries of many agents.
    """

    def __init__(self, hello: Hello, coordinator: str, rng: random.Random) -> None:
        self._hello = hello
        self._coordinator = coordinator
        self._rng = rng
        self.link = Link.WAITING
        self._retry_s = MIN_RETRY_S
        self._due_s = 0.0
        self._heartbeat_s = 1.0
        self._run_id = RunId(0)
        self._loading: LoadKey | None = None
        self._loaded: dict[LoadKey, _Held] = {}
        self._moves: Moves | None = None
        self._newest = Epoch(0)
        self._complaint = ""

    def next_due_s(self) -> float:
        """Return the time by which the next Tick is wanted."""
        return self._due_s if self._moves is None else min(self._due_s, self._moves.due_s)

    def shape_of(self, epoch: int) -> KvShape | None:
        """Return the shape of an epoch's KV pool, None if the epoch is not here."""
        held = self._loaded.get(LoadKey(self._run_id, Epoch(epoch)))
        return None if held is None else held.shape

    def release(self, epoch: Epoch) -> list[Action]:
        """Let go of an epoch, if it is here."""
        key = LoadKey(self._run_id, epoch)
        self._loaded.pop(key, None)
        if key == self._loading:
            self._loading = None
            return [CancelLoad(key)]
        return [Drop(key)]

    def on_event(self, event: Event, now_s: float) -> list[Action]:
        """Take one event and return what to do about it, in order."""
        match event:
            case Tick():
                due = [] if self._moves is None else self._moves.on_tick(now_s)
                return [*due, *self._on_tick(now_s)]
            case SpeedChanged():
                return self._beat(now_s) if self.link is Link.JOINED else []
            case LinkUp() if self.link is Link.DIALLING:
                return [Send(self._hello)]
            case LinkLost(reason) if self.link is not Link.WAITING:
                return self._give_up(
                    f"lost the coordinator at {self._coordinator}: {reason}", now_s
                )
            case Rejected(reason) if self.link is Link.DIALLING:
                return self._on_rejected(reason, now_s)
            case Received(message):
                return self._on_message(message, now_s)
            case Stop(reason):
                bye: list[Action] = [Send(Bye(reason))] if self.link is Link.JOINED else []
                return [*bye, Exit(0, reason)]
            case (
                BulkUp() | BulkReceived() | RowsRead() | RowsPlaced() | RowsMissing() | PoolFailed()
            ):
                return [] if self._moves is None else self._moves.on_event(event, now_s)
            case Reserved() | Joined() | LoadFailed() if self._moves is not None:
                of_mirror = self._moves.on_pool(event, now_s)
                return self._on_loader(event) if of_mirror is None else of_mirror
        return self._on_loader(event)

    def _on_tick(self, now_s: float) -> list[Action]:
        if now_s < self._due_s:
            return []
        if self.link is Link.WAITING:
            self.link = Link.DIALLING
            self._due_s = now_s + DIAL_S
            return [Dial()]
        if self.link is Link.DIALLING:
            return self._give_up(
                f"no answer from the coordinator at {self._coordinator} within {DIAL_S:.0f} s; is "
                f"it running there, and is its port open? Trying again",
                now_s,
            )
        return self._beat(now_s)

    def _beat(self, now_s: float) -> list[Action]:
        self._due_s = now_s + self._heartbeat_s
        return [SendHeartbeat(max((key.epoch for key in self._loaded), default=Epoch(0)))]

    def _on_loader(self, event: Event) -> list[Action]:
        match event:
            case Progress(key, done_bytes, total_bytes) if key == self._loading:
                return [Send(Loading(key.epoch, done_bytes, total_bytes))]
            case Loaded(key, ready, shape) if key == self._loading:
                self._loading = None
                self._loaded[key] = _Held(ready, shape)
                return [Adopt(key)]
            case Loaded(key) | Reserved(key):
                return [Drop(key)]
            case Joined(key) if key in self._loaded:
                return [Send(self._loaded[key].ready)]
            case LoadFailed(key, reason) if key == self._loading or key in self._loaded:
                self._loading = None if key == self._loading else self._loading
                self._loaded.pop(key, None)
                return [Drop(key), Send(Failed(key.epoch, reason))]
        return []

    def _on_message(self, message: CoordinatorMessage, now_s: float) -> list[Action]:
        if self.link is Link.WAITING:
            return []
        match message:
            case Welcome() if self.link is Link.DIALLING:
                return self._on_welcome(message, now_s)
            case Refused(reason, retry):
                text = f"the coordinator at {self._coordinator} refused this agent: {reason}"
                if not retry:
                    return [Exit(1, text)]
                self._retry_s = MAX_RETRY_S
                return self._give_up(text, now_s)
            case Shutdown(reason, leave):
                # The coordinator waits for this before it closes: what a closing link brings
                # last may never be read.
                bye: list[Action] = [Send(Bye(reason))]
                if leave:
                    return [*bye, Exit(0, reason)]
                return bye + self._give_up(f"the coordinator ended its run: {reason}", now_s)
            case Assignment() if self.link is Link.JOINED:
                return self._on_assignment(message, now_s)
            case Release(epoch) if self.link is Link.JOINED:
                return [*self.release(epoch), *self._expect_moves(False, now_s)]
            case Arrive() | Depart() | Want() | MoveEnd() if self._moves is not None:
                return self._moves.on_order(message, now_s)
            case ProbeLink(n_bytes) if self.link is Link.JOINED and self._loading is None:
                return [Probe(n_bytes)]
        return []

    def _on_welcome(self, welcome: Welcome, now_s: float) -> list[Action]:
        mismatch = _version_mismatch(self._hello.versions, welcome.versions)
        if mismatch:
            return [Exit(1, f"{mismatch}; install the same headwise release on both sides")]
        self.link = Link.JOINED
        self._retry_s = MIN_RETRY_S
        self._complaint = ""
        self._run_id = welcome.run_id
        self._moves = Moves(self._run_id, self._hello.name, welcome.bulk_token, self)
        # A hostile or broken WELCOME must not stop heartbeats or send them without pause.
        self._heartbeat_s = min(max(welcome.heartbeat_s, 0.05), 10.0)
        self._due_s = now_s + self._heartbeat_s
        return [OpenHot(welcome)]

    def _on_assignment(self, assignment: Assignment, now_s: float) -> list[Action]:
        epoch = assignment.epoch
        if assignment.run_id != self._run_id or epoch <= self._newest:
            reason = f"epoch {epoch} of run {assignment.run_id:#x} is not newer than what is here"
            return [Send(Failed(epoch, reason))]
        if len(self._loaded) >= MAX_EPOCHS:
            reason = f"{len(self._loaded)} epochs are held already; release one first"
            return [Send(Failed(epoch, reason))]
        superseded = [] if self._loading is None else [CancelLoad(self._loading)]
        self._loading, self._newest = LoadKey(self._run_id, epoch), epoch
        # Beside a plan that is in force: head groups of this board are about to move.
        moves = self._loaded and not assignment.kv_of_epoch
        ahead = self._expect_moves(True, now_s) if moves else []
        return [*superseded, Load(assignment), *ahead]

    def _expect_moves(self, expected: bool, now_s: float) -> list[Action]:
        return [] if self._moves is None else self._moves.expect(expected, now_s)

    def _on_rejected(self, reason: str, now_s: float) -> list[Action]:
        text = (
            f"cannot join the coordinator at {self._coordinator}: {reason}. Trying again until it "
            f"works"
        )
        actions = self._give_up(text, now_s)
        if text == self._complaint:
            # Said once, not with every try: nothing has changed.
            actions.remove(Warn(text))
        self._complaint = text
        return actions

    def _give_up(self, why: str, now_s: float) -> list[Action]:
        """Leave the link and everything that belongs to its run, and dial again later."""
        actions: list[Action] = [Warn(why)]
        if self._loading is not None:
            actions.append(CancelLoad(self._loading))
        if self._moves is not None and self._moves.is_open:
            actions.append(CloseMoves())
        if self.link is Link.JOINED:
            actions.append(CloseHot())
        self._moves = None
        self._loading, self._newest = None, Epoch(0)
        self._loaded.clear()
        self.link = Link.WAITING
        self._due_s = now_s + self._retry_s * self._rng.uniform(0.5, 1.0)
        self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)
        return [*actions, HangUp()]


def _version_mismatch(ours: Versions, theirs: Versions) -> str:
    """Return what keeps two releases from working together, or ""."""
    for name in ("protocol", "layout", "numerics"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if a != b:
            return (
                f"this agent ({ours.software}) has {name} version {a}, the coordinator "
                f"({theirs.software}) {b}"
            )
    return ""
