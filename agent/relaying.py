"""What the bulk channel's holder needs of whoever passes rows of keys and values on. Pure.

The decisions (who may read from whom, how much is under way) are the coordinator's; the socket is
`bulk`'s, which knows of them no more than this.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from agent.migration_messages import KvAsk, KvOffer, KvRows, Share

__all__ = ["Forward", "Peer", "Relaying"]

# Token and name of an agent, and the key that it proved ("": links have no keys).
Peer = tuple[bytes, str, str]


class Forward(NamedTuple):
    """Send a message to a route; `data` follows it, None = nothing does."""

    route: bytes
    message: KvAsk | KvRows
    data: bytes | memoryview | None = None


class Relaying(Protocol):
    """Passes rows from sources to targets; each call returns what to send, in order."""

    def begin(
        self, epoch: int, shares: Iterable[Share], token_bytes: int, peers: Iterable[Peer]
    ) -> None:
        """Grant the rows of a migration's shares, in place of a former one's."""

    def end(self) -> None:
        """End all grants."""

    def forget(self, token: bytes) -> None:
        """Let go of an agent whose link has ended."""

    def on_offer(self, route: bytes, offer: KvOffer, key: str, now_s: float) -> Sequence[Forward]:
        """Learn where a source is reached."""

    def on_ask(self, route: bytes, ask: KvAsk, key: str, now_s: float) -> Sequence[Forward]:
        """Take a target's request; KvRows with an error in the answer refuse it."""

    def on_rows(
        self, route: bytes, rows: KvRows, data: bytes | memoryview, window_bytes: int, now_s: float
    ) -> Sequence[Forward]:
        """Take a source's answer."""

    def on_tick(self, now_s: float) -> Sequence[Forward]:
        """Take note of the time."""
