"""The target's side of a migration: what is missing, asked for with credit, checked and placed.

The coordinator says what to have (`Want`), this machine asks for it (`Ask`), checks what comes and
hands it to the hot thread (`Place`), which owns the pool and carries actions out in their order.
Requests that stay unanswered are sent again; after a lost bulk link all open ones are. Pure.
"""

import zlib
from dataclasses import dataclass
from typing import NamedTuple

from agent.arrival_text import Piece, TextProgress
from agent.ids import KvId
from agent.kv import KvShape
from agent.kv_ops import KvOp, KvOpCode
from agent.kv_rows import rows_bytes, token_bytes
from agent.migration_messages import (
    Arrive,
    Group,
    Have,
    KvAsk,
    KvRows,
    MoveFailed,
    MoveReport,
    Want,
)
from agent.window import CHUNK_BYTES, Window

__all__ = ["Arrival", "ArrivalAction", "Ask", "CopyLocal", "Place", "Room", "Tell"]

# Most open requests: while a piece is read, relayed and placed others fill the link.
CREDITS = 12
# Most pieces that are copied on the board at a time; others wait behind them on the hot thread.
LOCAL_CREDITS = 2
RESEND_S = 2.0
# For what a text waits for, and for a source that does not know yet that it is one.
SOON_S = 0.2
SILENCE_S = 30.0
REPORT_S = 0.5
MAX_ATTEMPTS = 4
# A mirror lives for any number of texts; what is late by more of them than these does not come.
MAX_GONE = 64


class Tell(NamedTuple):
    """Send on the control channel."""

    message: MoveReport


class Ask(NamedTuple):
    """Send on the bulk channel."""

    message: KvAsk


class Room(NamedTuple):
    """Apply `ops` to the pool of the new epoch, then `extend` the context unless it is gone.

    Report what fails by `on_pool_error`.
    """

    kv_id: KvId
    ops: tuple[KvOp, ...]
    n_tokens: int


class Place(NamedTuple):
    """Write a rectangle into the pool of the new epoch; then `on_placed(number)`."""

    number: int
    kv_id: KvId
    groups: tuple[Group, ...]
    first: int
    n_tokens: int
    data: bytes | memoryview


class CopyLocal(NamedTuple):
    """Copy a rectangle from the pool of `from_epoch`; then `on_placed(number)`.

    Rows that are not there (any more) are `on_missing(number)`.
    """

    number: int
    from_epoch: int
    kv_id: KvId
    groups: tuple[Group, ...]
    first: int
    n_tokens: int


ArrivalAction = Tell | Ask | Room | Place | CopyLocal


@dataclass
class _Request:
    """A piece on its way: asked for, or, with `placing`, on its way into the pool."""

    text: TextProgress
    piece: Piece
    sent_s: float
    due_s: float
    placing: bool = False
    n_damaged: int = 0


class Arrival:
    """What one agent gets in one migration.

    Args:
        order: the coordinator's.
        me: this agent's name.
        shape: of the pool that is filled.
        now_s: monotonic time.
        token: what the relay knows this link by.

    Attributes:
        failed: why the migration cannot go on here; "" = it can.
        placed_bytes: bytes written into the pool, those of repeated rows too.
        n_dropped: replies that nobody waited for, or that were damaged.
    """

    def __init__(
        self, order: Arrive, me: str, shape: KvShape, now_s: float, token: bytes = b""
    ) -> None:
        self.order = order
        self._shares = [share for share in order.shares if share.target == me]
        self._shape = shape
        self._token_bytes = token_bytes(shape)
        self._token = token
        # A piece waits for gaps between two frames at its source and its target: the link rests
        # meanwhile anyway, and the hint is small beside what it carries in a phase.
        self._window = Window(CHUNK_BYTES, CREDITS, pause=0.0)
        # Every answer tells anew how much that is, as texts begin and end.
        self._window.on_reply(order.window_bytes, now_s, now_s)
        self._texts: dict[int, TextProgress] = {}
        # What is said of those that were released, the oldest first.
        self._gone: dict[int, Tell] = {}
        self._requests: dict[int, _Request] = {}
        self._last_number = 0
        self._heard_s = now_s
        self._report_s = now_s
        self._refusal = ""
        self.failed = ""
        self.placed_bytes = 0
        self.n_dropped = 0

    def next_due_s(self, now_s: float) -> float:
        """Return the time by which the next `on_tick` is wanted."""
        if self.failed:
            return now_s + RESEND_S
        due = [r.due_s for r in self._requests.values() if not r.placing]
        if any(not t.complete for t in self._texts.values()):
            due.append(self._report_s + REPORT_S)
        return min(due, default=now_s + RESEND_S)

    def on_want(self, want: Want, now_s: float) -> list[ArrivalAction]:
        """Take in what to have of one text."""
        if self.failed:
            return [self._failure()]
        gone = self._gone.get(want.kv_id)
        if gone is not None:
            return [gone]
        text = self._texts.get(want.kv_id)
        if text is None:
            text = TextProgress(KvId(want.kv_id), want.version)
            actions = self._begin(text, want)
        elif want.version < text.version:
            return [self._have(text)]
        elif want.version > text.version or want.gone:
            actions = self._renew(text, want)
        else:
            actions = self._grow(text, want.n_tokens)
        if want.gone:
            return [*actions, self._bury(text)]
        text.urgent = want.urgent
        pumped = self._pump(now_s)
        return [*actions, *pumped, *([self._have(text)] if text.complete else [])]

    def on_rows(self, rows: KvRows, data: bytes | memoryview, now_s: float) -> list[ArrivalAction]:
        """Take one reply of the source."""
        request = self._requests.get(rows.number)
        ours = (rows.run_id, rows.epoch) == (self.order.run_id, self.order.epoch)
        if request is None or request.placing or not ours or self.failed:
            self.n_dropped += 1
            return []
        if rows.error:
            # It may not know yet that it is a source, or the text was cut there a moment ago.
            self._refusal = rows.error
            request.due_s = now_s + SOON_S
            return []
        piece = request.piece
        n_bytes = rows_bytes(self._shape, piece.n_groups, piece.n_tokens)
        if len(data) != n_bytes or zlib.crc32(data) != rows.crc32:
            return self._damaged(request, now_s)
        self._heard_s = now_s
        self._window.on_reply(rows.window_bytes, request.sent_s, now_s)
        request.placing = True
        place = Place(
            rows.number, request.text.kv_id, piece.groups, piece.first, piece.n_tokens, data
        )
        return [place, *self._pump(now_s)]

    def on_placed(self, number: int, now_s: float) -> list[ArrivalAction]:
        """Take in that the hot thread has written a rectangle."""
        request = self._requests.pop(number, None)
        if request is None or self.failed:
            return []
        self._heard_s = now_s
        text, piece = request.text, request.piece
        text.placed(piece)
        self.placed_bytes += rows_bytes(self._shape, piece.n_groups, piece.n_tokens)
        done: list[ArrivalAction] = [self._have(text)] if text.complete else []
        return [*done, *self._pump(now_s)]

    def on_missing(self, number: int, reason: str, now_s: float) -> list[ArrivalAction]:
        """Take in that rows of a local share are not where they were to be copied from.

        The text was cut there a moment ago, and word of it is on its way; until then: try again.
        """
        request = self._requests.get(number)
        if request is not None:
            self._refusal = reason
            request.placing, request.due_s = False, now_s + SOON_S
        return []

    def on_pool_error(self, reason: str) -> list[ArrivalAction]:
        """Take in that the pool could not do what was asked of it."""
        return self._fail(reason)

    def on_bulk_renewed(self, now_s: float) -> list[ArrivalAction]:
        """Ask again for all that was open: the link is another one."""
        for request in self._requests.values():
            request.due_s = now_s
        return self._pump(now_s)

    def on_tick(self, now_s: float) -> list[ArrivalAction]:
        """Send what is due: requests again, new ones, progress."""
        if self.failed:
            return []
        waiting = [r for r in self._requests.values() if not r.placing]
        if waiting and now_s - self._heard_s > SILENCE_S:
            share = waiting[0].piece.share
            why = f", the last answer was {self._refusal!r}" if self._refusal else ""
            return self._fail(
                f"no rows came from agent {share.source!r} for {SILENCE_S:.0f} s{why}; is the "
                f"bulk port reachable from there?"
            )
        actions = self._pump(now_s)
        if now_s >= self._report_s + REPORT_S:
            self._report_s = now_s
            actions += [self._have(t) for t in self._texts.values() if not t.complete]
        return actions

    # Texts.

    def _begin(self, text: TextProgress, want: Want) -> list[ArrivalAction]:
        if want.gone:
            return []
        kv_id = text.kv_id
        self._texts[kv_id] = text
        text.reserve_tokens = want.reserve_tokens
        ops = [KvOp(KvOpCode.OPEN, kv_id, want.reserve_tokens)]
        parent = self._texts.get(want.fork_of) if want.fork_tokens else None
        if parent and parent.version == want.fork_version and parent.have:
            text.have = text.wanted = min(want.fork_tokens, parent.have)
            ops.insert(0, KvOp(KvOpCode.FORK, kv_id, parent.kv_id, text.have))
        room: list[ArrivalAction] = [Room(kv_id, tuple(ops), text.have)]
        return [*room, *self._grow(text, want.n_tokens)]

    def _grow(self, text: TextProgress, n_tokens: int) -> list[ArrivalAction]:
        if n_tokens <= text.wanted:
            return []
        text.wanted = n_tokens
        return [Room(text.kv_id, (), n_tokens)]

    def _renew(self, text: TextProgress, want: Want) -> list[ArrivalAction]:
        """Begin a version: rows from the floor on are void, or the text is gone."""
        text.version = want.version
        text.void_from(0 if want.gone else want.floor)
        self._requests = {n: r for n, r in self._requests.items() if r.text is not text}
        if want.gone:
            return [Room(text.kv_id, (KvOp(KvOpCode.RELEASE, text.kv_id),), 0)]
        text.have = min(text.have, want.n_tokens)
        text.wanted = text.have
        cut = KvOp(KvOpCode.TRUNCATE, text.kv_id, text.have)
        room: list[ArrivalAction] = [Room(text.kv_id, (cut,), text.have)]
        return [*room, *self._grow(text, want.n_tokens)]

    def _bury(self, text: TextProgress) -> Tell:
        """Forget a released text but for what is said of it, if an order of before comes late."""
        run_id, epoch = self.order.run_id, self.order.epoch
        self._texts.pop(text.kv_id, None)
        last = self._gone[text.kv_id] = Tell(
            Have(run_id, epoch, text.kv_id, text.version, 0, gone=True)
        )
        while len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]
        return last

    # Requests.

    def _pump(self, now_s: float) -> list[ArrivalAction]:
        """Return requests that are due again, and new ones as far as credit goes."""
        actions: list[ArrivalAction] = []
        for number, request in self._requests.items():
            if not request.placing and now_s >= request.due_s:
                actions.append(self._fetch(number, request, now_s))
        for text in sorted(self._texts.values(), key=lambda t: not t.urgent):
            if text.complete:
                continue
            most = CREDITS if text.urgent else self._window.credits
            chunk_bytes = CHUNK_BYTES if text.urgent else self._window.chunk_bytes
            for local, n_most in ((False, most), (True, LOCAL_CREDITS)):
                n_left = n_most - sum(r.piece.share.local is local for r in self._requests.values())
                while n_left > 0:
                    piece = text.next_piece(self._shares, self._token_bytes, chunk_bytes, local)
                    if piece is None:
                        break
                    actions.append(self._send(text, piece, now_s))
                    n_left -= 1
        return actions

    def _send(self, text: TextProgress, piece: Piece, now_s: float) -> ArrivalAction:
        if all(r.placing for r in self._requests.values()):
            self._heard_s = now_s
        self._last_number = number = self._last_number + 1
        request = self._requests[number] = _Request(text, piece, now_s, now_s)
        return self._fetch(number, request, now_s)

    def _fetch(self, number: int, request: _Request, now_s: float) -> ArrivalAction:
        """Ask for a piece, or have it copied where it is already here."""
        piece = request.piece
        if not piece.share.local:
            return self._ask(number, request, now_s)
        request.placing = True
        kv_id, epoch = request.text.kv_id, piece.share.of_epoch or self.order.from_epoch
        return CopyLocal(number, epoch, kv_id, piece.groups, piece.first, piece.n_tokens)

    def _ask(self, number: int, request: _Request, now_s: float) -> Ask:
        piece, text = request.piece, request.text
        request.sent_s = now_s
        request.due_s = now_s + (SOON_S if text.urgent else RESEND_S)
        return Ask(
            KvAsk(
                self.order.run_id, self.order.epoch, number, piece.share.number, text.kv_id,
                piece.first_group, piece.n_groups, piece.first, piece.n_tokens, text.urgent,
                self._token,
            )
        )  # fmt: skip

    def _damaged(self, request: _Request, now_s: float) -> list[ArrivalAction]:
        self.n_dropped += 1
        request.n_damaged += 1
        request.due_s = now_s
        if request.n_damaged >= MAX_ATTEMPTS:
            source = request.piece.share.source
            return self._fail(
                f"rows from agent {source!r} arrived damaged {MAX_ATTEMPTS} times; check the "
                f"network"
            )
        return self._pump(now_s)

    # Reports.

    def _have(self, text: TextProgress) -> Tell:
        run_id, epoch = self.order.run_id, self.order.epoch
        return Tell(Have(run_id, epoch, text.kv_id, text.version, text.have))

    def _fail(self, reason: str) -> list[ArrivalAction]:
        if self.failed:
            return []
        self.failed = reason[:1024]
        self._requests.clear()
        return [self._failure()]

    def _failure(self) -> Tell:
        return Tell(MoveFailed(self.order.run_id, self.order.epoch, self.failed))
