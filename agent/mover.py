"""An agent's part in migrations, target and source: at most one at a time. Pure.

A migration of a higher epoch replaces the one before; nothing of an ended or a former one is taken
up again, and nothing of another run is looked at. What it asks for beside `arrival`'s actions:
`Export` (read rows for the relay), `Serve` (send rows), `FreeEpoch`.
"""

from collections.abc import Callable
from typing import NamedTuple

from agent.arrival import Arrival, ArrivalAction, Tell
from agent.departure import Departure, Export
from agent.kv import KvShape
from agent.migration_messages import (
    Arrive,
    Begun,
    Depart,
    KvAsk,
    KvRows,
    MoveEnd,
    MoveEnded,
    MoveFailed,
    MoveOrder,
    Want,
)

__all__ = ["FreeEpoch", "Mover", "MoverAction", "Serve"]


class Serve(NamedTuple):
    """Send a reply to the relay; its bytes are those that were read last for this number."""

    message: KvRows


class FreeEpoch(NamedTuple):
    """Let go of an epoch, as on `Release`; harmless if it is not here."""

    epoch: int


MoverAction = ArrivalAction | Export | Serve | FreeEpoch


class Mover:
    """What one agent does in the migrations of one run.

    Args:
        run_id: the coordinator's.
        me: this agent's name.
        shape_of: returns the shape of an epoch's pool, None if the epoch is not here.
        token: what the relay knows this link by.

    Attributes:
        n_stale: orders and requests of other runs or of migrations that are over.
    """

    def __init__(
        self,
        run_id: int,
        me: str,
        shape_of: Callable[[int], KvShape | None],
        token: bytes = b"",
    ) -> None:
        self._run_id = run_id
        self._me = me
        self._shape_of = shape_of
        self._token = token
        self._ended = 0
        self.arrival: Arrival | None = None
        self.departure: Departure | None = None
        self.n_stale = 0

    def on_order(self, order: MoveOrder, now_s: float) -> list[MoverAction]:
        """Take a message of the coordinator."""
        if order.run_id != self._run_id:
            self.n_stale += 1
            return []
        if isinstance(order, MoveEnd):
            return self._end(order)
        if not self.may_begin(order):
            self.n_stale += 1
            return []
        match order:
            case Arrive():
                return self._arrive(order, now_s)
            case Depart():
                return self._depart(order)
            case Want() if self.arrival and self.arrival.order.epoch == order.epoch:
                return [*self.arrival.on_want(order, now_s)]
        # It came before its ARRIVE, which is sent again.
        self.n_stale += 1
        return []

    def may_begin(self, order: Arrive | Depart | Want) -> bool:
        """Tell whether an order is of this run, and of no migration that is over."""
        return order.run_id == self._run_id and order.epoch > self._ended

    def on_ask(self, ask: KvAsk) -> list[MoverAction]:
        """Take a request of the relay."""
        if self.departure is None:
            return [Serve(KvRows(ask.run_id, ask.epoch, ask.number, error="no grant"))]
        answer = self.departure.on_ask(ask)
        return [answer if isinstance(answer, Export) else Serve(answer)]

    def on_read(self, number: int, crc32: int | None) -> list[MoverAction]:
        """Take in that rows were read, or (None) that they are not there."""
        reply = None if self.departure is None else self.departure.on_read(number, crc32)
        return [] if reply is None else [Serve(reply)]

    def _arrive(self, order: Arrive, now_s: float) -> list[MoverAction]:
        begun = Tell(Begun(order.run_id, order.epoch, arrives=True))
        if self.arrival is not None and self.arrival.order.epoch >= order.epoch:
            if self.arrival.order.epoch > order.epoch:
                self.n_stale += 1
                return []
            return [begun]
        shape = self._shape_of(order.epoch)
        if shape is None:
            return [self._missing(order, order.epoch)]
        self.arrival = Arrival(order, self._me, shape, now_s, self._token)
        return [begun]

    def _depart(self, order: Depart) -> list[MoverAction]:
        begun = Tell(Begun(order.run_id, order.epoch, arrives=False))
        if self.departure is not None and self.departure.order.epoch >= order.epoch:
            if self.departure.order.epoch > order.epoch:
                self.n_stale += 1
                return []
            return [begun]
        shape = self._shape_of(order.from_epoch)
        if shape is None:
            return [self._missing(order, order.from_epoch)]
        self.departure = Departure(order, self._me, shape)
        return [begun]

    def _end(self, order: MoveEnd) -> list[MoverAction]:
        if self.arrival is not None and self.arrival.order.epoch <= order.epoch:
            self.arrival = None
        if self.departure is not None and self.departure.order.epoch <= order.epoch:
            self.departure = None
        self._ended = max(self._ended, order.epoch)
        return [FreeEpoch(order.frees), Tell(MoveEnded(order.run_id, order.epoch))]

    def _missing(self, order: Arrive | Depart, epoch: int) -> Tell:
        reason = f"epoch {epoch} is not on this agent"
        return Tell(MoveFailed(order.run_id, order.epoch, reason))
