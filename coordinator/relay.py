"""Rows of keys and values on their way from one agent to another, through the coordinator.

Agents only dial out: a target asks the coordinator, which asks the source on the link that the
source has offered, and hands the answer on. At most `max_bytes` are under way at a time, so that
no more than these wait in memory, whatever targets ask for; requests beyond that stand in line,
a few for each target, those that a text waits for first. Pure: `bulk` owns the socket.
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from agent.migration_messages import MAX_ROWS_BYTES, KvAsk, KvError, KvOffer, KvRows, Share
from agent.relaying import Forward, Peer

__all__ = ["Forward", "Relay"]

MAX_BYTES = 12 * MAX_ROWS_BYTES
MAX_WAITING = 16  # requests of one target; a good one has at most 12 open
EXPIRE_S = 5.0
OFFER_S = 5.0


class _Peer(NamedTuple):
    """An agent's link: the token that it was told and the key that it proved."""

    name: str
    key: str


class _Open(NamedTuple):
    """A request that a source was asked, or that waits for it."""

    route: bytes
    ask: KvAsk
    n_bytes: int
    source: str
    until_s: float


class Relay:
    """Passes requests and rows of one migration at a time.

    Args:
        run_id: of the coordinator.
        max_bytes: most bytes asked of sources and not yet handed on.

    Attributes:
        n_relayed_bytes: bytes handed on.
        n_refused: requests that no share of the migration covers.
        n_dropped: answers that nobody waits for (any more), requests that found no room.
    """

    def __init__(self, run_id: int, max_bytes: int = MAX_BYTES) -> None:
        self._run_id = run_id
        self._max_bytes = max_bytes
        self._epoch = 0
        self._token_bytes = 1
        self._shares: dict[int, Share] = {}
        self._peers: dict[bytes, _Peer] = {}
        self._routes: dict[str, tuple[bytes, float]] = {}
        self._waiting: list[_Open] = []
        self._open: dict[int, _Open] = {}
        self._last_number = 0
        self.n_relayed_bytes = self.n_refused = self.n_dropped = 0

    @property
    def open_bytes(self) -> int:
        """Bytes that sources were asked for and that were not handed on."""
        return sum(o.n_bytes for o in self._open.values())

    def begin(
        self,
        epoch: int,
        shares: Iterable[Share],
        token_bytes: int,
        peers: Iterable[Peer],
    ) -> None:
        """Grant the rows of a migration's shares; a former migration's grants end.

        `peers` are (token, name, key) of every agent; `token_bytes` is a position of one group.
        """
        self.end()
        self._epoch, self._token_bytes = epoch, token_bytes
        self._shares = {s.number: s for s in shares}
        self._peers = {token: _Peer(name, key) for token, name, key in peers}

    def end(self) -> None:
        """End all grants; answers that still come are dropped."""
        self._shares, self._peers, self._routes = {}, {}, {}
        self._waiting, self._open = [], {}

    def forget(self, token: bytes) -> None:
        """Let go of an agent whose link has ended: it asks and answers no more."""
        peer = self._peers.pop(token, None)
        if peer is None:
            return
        self._routes.pop(peer.name, None)

        def stays(o: _Open) -> bool:
            return peer.name != o.source and token != o.ask.token

        self._open = {number: o for number, o in self._open.items() if stays(o)}
        self._waiting = [o for o in self._waiting if stays(o)]

    def on_offer(self, route: bytes, offer: KvOffer, key: str, now_s: float) -> list[Forward]:
        """Learn where a source is reached; a link that broke offers itself anew."""
        peer = self._peers.get(offer.token)
        if offer.run_id != self._run_id or peer is None or peer.key != key:
            self.n_refused += 1
            return []
        former = self._routes.get(peer.name)
        self._routes[peer.name] = (route, now_s)
        if former is not None and former[0] != route:
            # What the former link was asked is lost: the targets ask again.
            self._open = {n: o for n, o in self._open.items() if o.source != peer.name}
        return self._pump(now_s)

    def on_ask(self, route: bytes, ask: KvAsk, key: str, now_s: float) -> list[Forward]:
        """Take a target's request."""
        share = self._shares.get(ask.share)
        error = self._objection(ask, share, key)
        if error or share is None:
            self.n_refused += 1
            return [self._refuse(route, ask, error or "no grant")]
        for number, asked in self._open.items():
            if (asked.route, asked.ask.number) == (route, ask.number):
                # Its answer may be lost; the first one that comes counts.
                return [self._ask_source(number, asked)]
        if any((o.route, o.ask.number) == (route, ask.number) for o in self._waiting):
            return self._pump(now_s)
        if sum(o.route == route for o in self._all()) >= MAX_WAITING:
            self.n_dropped += 1
            return [self._refuse(route, ask, "busy")]
        n_bytes = self._bytes(ask)
        self._waiting.append(_Open(route, ask, n_bytes, share.source, now_s + EXPIRE_S))
        return self._pump(now_s)

    def on_rows(
        self, route: bytes, rows: KvRows, data: bytes | memoryview, window_bytes: int, now_s: float
    ) -> list[Forward]:
        """Take a source's answer and hand it on, with a hint to its receiver."""
        asked = self._open.get(rows.number)
        if asked is None or self._routes.get(asked.source, (b"", 0.0))[0] != route:
            self.n_dropped += 1
            return []
        del self._open[rows.number]
        if not rows.error and len(data) != asked.n_bytes:
            self.n_dropped += 1
            return self._pump(now_s)
        self.n_relayed_bytes += len(data)
        reply = msgspec.structs.replace(rows, number=asked.ask.number, window_bytes=window_bytes)
        return [Forward(asked.route, reply, b"" if rows.error else data), *self._pump(now_s)]

    def on_tick(self, now_s: float) -> list[Forward]:
        """Give up what stayed unanswered: it is asked for again if anybody still wants it."""
        self._open = {n: o for n, o in self._open.items() if now_s < o.until_s}
        self._waiting = [o for o in self._waiting if now_s < o.until_s]
        return self._pump(now_s)

    def _all(self) -> list[_Open]:
        return [*self._waiting, *self._open.values()]

    def _objection(self, ask: KvAsk, share: Share | None, key: str) -> KvError:
        if ask.run_id != self._run_id:
            return "wrong run"
        peer = self._peers.get(ask.token)
        if ask.epoch != self._epoch or share is None or share.local or peer is None:
            return "no grant"
        if peer != (share.target, key):
            return "no grant"
        n_bytes = self._bytes(ask)
        if not (
            1 <= ask.n_groups <= len(share.groups) - ask.first_group
            and 0 < n_bytes <= MAX_ROWS_BYTES
        ):
            return "bad range"
        return ""

    def _bytes(self, ask: KvAsk) -> int:
        return ask.n_groups * ask.n_tokens * self._token_bytes

    def _ask_source(self, number: int, asked: _Open) -> Forward:
        ask = msgspec.structs.replace(asked.ask, number=number, token=b"")
        return Forward(self._routes[asked.source][0], ask)

    def _refuse(self, route: bytes, ask: KvAsk, error: KvError) -> Forward:
        return Forward(route, KvRows(ask.run_id, ask.epoch, ask.number, error=error), b"")

    def _pump(self, now_s: float) -> list[Forward]:
        """Ask sources for what stands in line, urgent requests first, as far as room goes."""
        forwards: list[Forward] = []
        room_bytes = self._max_bytes - self.open_bytes
        left: list[_Open] = []
        for asked in sorted(self._waiting, key=lambda o: not o.ask.urgent):
            offered_s = self._routes.get(asked.source, (b"", float("-inf")))[1]
            if asked.n_bytes > room_bytes or now_s - offered_s > OFFER_S:
                left.append(asked)
                continue
            room_bytes -= asked.n_bytes
            self._last_number += 1
            self._open[self._last_number] = asked
            forwards.append(self._ask_source(self._last_number, asked))
        self._waiting = left
        return forwards
