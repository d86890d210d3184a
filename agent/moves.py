"""An agent's part in the migrations of one run, between its session and `mover`. Pure.

Says which socket or thread is to do what `mover` asks for, keeps its deadlines, and offers the
bulk link to the relay while rows may be read here. Of late events only those of the migration
that is on are looked at. A mirror is a migration that leads to no plan; the pool that it fills is
reserved here, before it begins.
"""

import zlib
from typing import Protocol

from agent.arrival import Ask, CopyLocal, Place, Room, Tell
from agent.departure import Export
from agent.events import (
    Action,
    Adopt,
    BulkReceived,
    BulkUp,
    CancelLoad,
    CloseMoves,
    Joined,
    LoadFailed,
    LoadKey,
    MoveEvent,
    OpenMoves,
    PoolFailed,
    PoolJob,
    Reserve,
    Reserved,
    RowsMissing,
    RowsPlaced,
    RowsRead,
    Send,
    SendBulk,
)
from agent.ids import AgentName, Epoch, RunId
from agent.kv_shape import KvShape
from agent.messages import PROBE_OBJECT, BulkRequest
from agent.migration_messages import (
    MAX_REASON,
    Arrive,
    Depart,
    KvAsk,
    KvOffer,
    KvRows,
    MoveEnd,
    MoveFailed,
    MoveOrder,
)
from agent.mirror_pool import mirrored_groups
from agent.mover import FreeEpoch, Mover, MoverAction, Serve

__all__ = ["Moves"]

OFFER_S = 1.0
# Half of what rows need under way on a link of 1 Gbit; 4 ms of it.
N_WARM, WARM_BYTES = 4, 128 << 10


class Epochs(Protocol):
    """The epochs that are on this agent."""

    def shape_of(self, epoch: int) -> KvShape | None:
        """Return the shape of an epoch's pool, None if the epoch is not here."""

    def release(self, epoch: Epoch) -> list[Action]:
        """Let go of an epoch, if it is here."""


class Moves:
    """What one agent does in the migrations of one run.

    Args:
        run_id: the coordinator's.
        me: this agent's name.
        token: what the relay knows this link by.
        epochs: what is on this agent.

    Attributes:
        due_s: when the next `on_tick` is wanted.
        is_open: whether a migration is on or expected, and with it the bulk link.
    """

    def __init__(self, run_id: RunId, me: AgentName, token: bytes, epochs: Epochs) -> None:
        self._run_id = run_id
        self._me = me
        self._token = token
        self._epochs = epochs
        self._mirrors: dict[int, KvShape] = {}
        self._awaited: Arrive | None = None  # until its pool is there
        self._mover = Mover(run_id, me, self._shape_of, token)
        self._offer_s = 0.0
        self._expected = False
        self.due_s = float("inf")
        self.is_open = False

    def on_order(self, order: MoveOrder, now_s: float) -> list[Action]:
        """Take a message of the coordinator."""
        is_mirror = isinstance(order, Arrive) and order.mirror and self._mover.may_begin(order)
        if isinstance(order, Arrive) and is_mirror and not self._is_here(order.epoch):
            return self._reserve(order)
        if isinstance(order, MoveEnd) and order.epoch not in self._mirrors:
            self._expected = False
        if isinstance(order, Depart):
            # The relay forgets its routes with each migration; whoever wants rows waits for one.
            self._offer_s = now_s
        return self._act(self._mover.on_order(order, now_s), now_s)

    def expect(self, expected: bool, now_s: float) -> list[Action]:
        """Open the link before the first order, or close it if none came.

        To dial and to prove keys takes several round trips; rows shall not wait for them.
        """
        self._expected = expected
        return self._act([], now_s)

    # The pools of mirrors.

    def _shape_of(self, epoch: int) -> KvShape | None:
        return self._mirrors.get(epoch) or self._epochs.shape_of(epoch)

    def _is_here(self, epoch: int) -> bool:
        """Whether the hot loop has the pool of a mirror."""
        return epoch in self._mirrors and self._awaited is None

    def _reserve(self, order: Arrive) -> list[Action]:
        """Have the pool of a mirror reserved; the order is looked at again once it is there."""
        if self._awaited is not None and self._awaited.epoch >= order.epoch:
            return []
        shape = self._epochs.shape_of(order.from_epoch)
        if shape is None:
            return self._refuse(order, f"epoch {order.from_epoch} is not on this agent")
        if self._mirrors or self._awaited is not None:
            return self._refuse(order, "another mirror is on this agent; end it first")
        self._awaited = order
        groups = mirrored_groups(order.shares, self._me)
        key = LoadKey(self._run_id, Epoch(order.epoch))
        return [Reserve(key, shape._replace(n_groups=len(groups)), groups)]

    def _refuse(self, order: Arrive, reason: str) -> list[Action]:
        return [Send(MoveFailed(order.run_id, order.epoch, reason[:MAX_REASON]))]

    def on_pool(self, event: Reserved | Joined | LoadFailed, now_s: float) -> list[Action] | None:
        """Take in how it goes with a mirror's pool; None: the event is about something else."""
        order, key = self._awaited, event.key
        if order is None or key != LoadKey(self._run_id, Epoch(order.epoch)):
            return None
        match event:
            case Reserved(_, shape):
                self._mirrors[key.epoch] = shape
                return [Adopt(key)]
            case LoadFailed(_, reason):
                self._mirrors.pop(key.epoch, None)
                self._awaited = None
                return self._refuse(order, reason)
            case Joined():
                self._awaited = None
                return self._act(self._mover.on_order(order, now_s), now_s)

    def _free(self, epoch: Epoch) -> list[Action]:
        """Let go of an epoch, a plan's or a mirror's."""
        self._mirrors.pop(epoch, None)
        awaited = self._awaited is not None and self._awaited.epoch == epoch
        if not awaited:
            return self._epochs.release(epoch)
        self._awaited = None
        return [CancelLoad(LoadKey(self._run_id, epoch)), *self._epochs.release(epoch)]

    # What happens.

    def on_event(self, event: MoveEvent, now_s: float) -> list[Action]:
        """Take in what the bulk link or the hot loop has to tell."""
        arrival = self._mover.arrival
        if isinstance(event, RowsRead | RowsPlaced | RowsMissing | PoolFailed):
            order = self._mover.departure if isinstance(event, RowsRead) else arrival
            if order is None or event.key != LoadKey(self._run_id, Epoch(order.order.epoch)):
                return []
        data: bytes | bytearray = b""
        actions: list[MoverAction] = []
        match event:
            case BulkUp():
                self._offer_s = now_s
                actions = [*arrival.on_bulk_renewed(now_s)] if arrival else []
                return [*self._warm(), *self._act(actions, now_s)]
            case BulkReceived(KvAsk() as ask):
                actions = self._mover.on_ask(ask)
            case BulkReceived(KvRows() as rows, content) if arrival:
                actions = [*arrival.on_rows(rows, content, now_s)]
            case RowsRead(_, number, read):
                data = read or b""
                actions = self._mover.on_read(number, None if read is None else zlib.crc32(read))
            case RowsPlaced(_, number) if arrival:
                actions = [*arrival.on_placed(number, now_s)]
            case RowsMissing(_, number, reason) if arrival:
                actions = [*arrival.on_missing(number, reason, now_s)]
            case PoolFailed(_, reason) if arrival:
                actions = [*arrival.on_pool_error(reason)]
        return self._act(actions, now_s, data)

    def _warm(self) -> list[Action]:
        """Pull a little that nobody needs, while the pool is still being made.

        TCP begins slowly, and slower still once the source sends: then each round trip from the
        coordinator waits behind its rows. The coordinator refuses it while a text is written.
        """
        if not self._expected or self._mover.arrival or self._mover.departure:
            return []
        request = BulkRequest(self._run_id, PROBE_OBJECT, 0, WARM_BYTES, self._token)
        return [SendBulk(request)] * N_WARM

    def on_tick(self, now_s: float) -> list[Action]:
        """Do what is due."""
        if now_s < self.due_s:
            return []
        arrival = self._mover.arrival
        return self._act([*arrival.on_tick(now_s)] if arrival else [], now_s)

    def _act(
        self, asked: list[MoverAction], now_s: float, data: bytes | bytearray = b""
    ) -> list[Action]:
        """Return what the session is to do; `data` are the rows of a reply among it."""
        arrival, departure = self._mover.arrival, self._mover.departure
        is_on = self._expected or arrival is not None or departure is not None
        actions: list[Action] = []
        if is_on and not self.is_open:
            actions.append(OpenMoves())
            self._offer_s = now_s
        for action in asked:
            actions += self._translate(action, data)
        due = [] if arrival is None else [arrival.next_due_s(now_s)]
        if departure is not None:
            if now_s >= self._offer_s:
                offer = KvOffer(self._run_id, departure.order.epoch, self._token)
                actions.append(SendBulk(offer))
                self._offer_s = now_s + OFFER_S
            due.append(self._offer_s)
        if self.is_open and not is_on:
            actions.append(CloseMoves())
        self.is_open = is_on
        self.due_s = min(due, default=float("inf"))
        return actions

    def _translate(self, action: MoverAction, data: bytes | bytearray) -> list[Action]:
        match action:
            case Tell(message):
                return [Send(message)]
            case Ask(message):
                return [SendBulk(message)]
            case Serve(message):
                return [SendBulk(message, b"" if message.error else data)]
            case FreeEpoch(epoch):
                return self._free(Epoch(epoch))
            case Export():
                departure = self._mover.departure
                return [] if departure is None else [self._job(departure.order, action)]
            case Room() | Place() | CopyLocal():
                arrival = self._mover.arrival
                return [] if arrival is None else [self._job(arrival.order, action)]

    def _job(self, order: Arrive | Depart, work: Room | Place | CopyLocal | Export) -> PoolJob:
        return PoolJob(LoadKey(self._run_id, Epoch(order.epoch)), work, not order.mirror)
