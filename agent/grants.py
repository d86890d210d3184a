"""Who may pull what over the bulk channel, and until when. Pure.

A grant names a link by its token (16 random bytes that only that agent was told) and by the key
that its agent proved, objects by their hash, and an end. Nothing else is served: knowing a hash,
or a token that another agent was told, is not enough. Does not know who
serves; whoever does keeps a table of its own.
"""

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["MAX_GRANTS", "Grants", "grant_seconds"]

MAX_GRANTS = 1024
# A grant outlives the slowest link that is worth waiting for; a plan's end ends it sooner.
_BASE_S = 600.0
_SLOWEST_BYTES_PER_S = 250e3


class _Grant(NamedTuple):
    """Objects that one link may pull before `until_s`, by the key of its agent ("": none)."""

    objects: frozenset[str]
    until_s: float
    key: str


class Grants:
    """The table of grants in force, at most one for each token."""

    def __init__(self) -> None:
        self._by_token: dict[bytes, _Grant] = {}

    def __len__(self) -> int:
        return len(self._by_token)

    def grant(self, token: bytes, objects: Iterable[str], until_s: float, key: str = "") -> None:
        """Let the link with this token and key pull `objects` until `until_s`.

        Replaces what it was granted before. When MAX_GRANTS are in force the one that ends
        soonest gives way.
        """
        self._by_token.pop(token, None)
        while len(self._by_token) >= MAX_GRANTS:
            del self._by_token[min(self._by_token, key=lambda t: self._by_token[t].until_s)]
        self._by_token[token] = _Grant(frozenset(objects), until_s, key)

    def end(self, token: bytes) -> None:
        """End what a link was granted; harmless when it has nothing."""
        self._by_token.pop(token, None)

    def end_all(self) -> None:
        """End every grant."""
        self._by_token.clear()

    def allows(self, token: bytes, object_id: str, now_s: float, key: str = "") -> bool:
        """Tell whether the link may pull that object now."""
        grant = self._by_token.get(token)
        if grant is None:
            return False
        if now_s >= grant.until_s:
            del self._by_token[token]
            return False
        return key == grant.key and object_id in grant.objects


def grant_seconds(n_bytes: int) -> float:
    """Return how long a grant over that many bytes lasts."""
    return _BASE_S + n_bytes / _SLOWEST_BYTES_PER_S
