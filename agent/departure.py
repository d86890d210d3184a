"""The source's side of a migration: which rows may be read, and by whom. Pure.

Only rows of the shares that the coordinator named leave, and only while the migration lasts.
Reading takes place on the hot thread between two frames, because the pool is its own: what is let
through here comes back as `Export`, to be read by `kv_rows.export_rows`. A row below the context's
tokens never changes unless the context is truncated, of which the coordinator tells the target.
"""

from typing import NamedTuple

from agent.ids import KvId
from agent.kv import KvShape
from agent.kv_rows import rows_bytes
from agent.migration_messages import MAX_ROWS_BYTES, Depart, Group, KvAsk, KvError, KvRows, Share

__all__ = ["MAX_EXPORTS", "Departure", "Export"]

# Most rectangles on their way to the hot thread. The relay's own bound is tighter.
MAX_EXPORTS = 16


class Export(NamedTuple):
    """Read a rectangle out of the pool of an epoch and answer `number`."""

    number: int
    from_epoch: int
    kv_id: KvId
    groups: tuple[Group, ...]
    first: int
    n_tokens: int


class Departure:
    """What one agent gives away in one migration.

    Args:
        order: the coordinator's.
        me: this agent's name.
        shape: of the pool that is read.

    Attributes:
        n_served: rectangles sent.
        n_refused: requests that were answered with an error.
    """

    def __init__(self, order: Depart, me: str, shape: KvShape) -> None:
        self.order = order
        self._shape = shape
        self._shares: dict[int, Share] = {s.number: s for s in order.shares if s.source == me}
        self._open: set[int] = set()
        self.n_served = 0
        self.n_refused = 0

    def on_ask(self, ask: KvAsk) -> Export | KvRows:
        """Return what to read for a request, or the reply that refuses it."""
        error = self._objection(ask)
        if error:
            self.n_refused += 1
            return KvRows(ask.run_id, ask.epoch, ask.number, error=error)
        self._open.add(ask.number)
        share, kv_id = self._shares[ask.share], KvId(ask.kv_id)
        groups = share.groups[ask.first_group : ask.first_group + ask.n_groups]
        epoch = share.of_epoch or self.order.from_epoch
        return Export(ask.number, epoch, kv_id, groups, ask.first, ask.n_tokens)

    def on_read(self, number: int, crc32: int | None) -> KvRows | None:
        """Return the reply to send once the rows were read.

        `crc32` is that of their bytes; None = the pool has no such rows (any more).
        """
        if number not in self._open:
            return None
        self._open.remove(number)
        run_id, epoch = self.order.run_id, self.order.epoch
        if crc32 is None:
            self.n_refused += 1
            return KvRows(run_id, epoch, number, error="not here")
        self.n_served += 1
        return KvRows(run_id, epoch, number, crc32)

    def _objection(self, ask: KvAsk) -> KvError:
        if ask.run_id != self.order.run_id:
            return "wrong run"
        share = self._shares.get(ask.share)
        if ask.epoch != self.order.epoch or share is None:
            return "no grant"
        n_bytes = rows_bytes(self._shape, ask.n_groups, ask.n_tokens)
        if (
            not 1 <= ask.n_groups <= len(share.groups) - ask.first_group
            or not 0 < n_bytes <= MAX_ROWS_BYTES
            or ask.first + ask.n_tokens > self._shape.context_tokens
        ):
            return "bad range"
        if len(self._open) >= MAX_EXPORTS and ask.number not in self._open:
            return "busy"
        return ""
