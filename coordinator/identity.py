"""Which agent speaks on which link, told by keys and not by what it says of itself. Pure.

A key of the allow-list belongs to one name. Everything that is given to a link (its route on the
hot channel, its token on the bulk channel) is random, of that link only, and ends with it.
"""

import secrets
from collections.abc import Callable
from typing import NamedTuple

from agent.ids import AgentName
from agent.messages import AgentMessage, Hello

__all__ = ["Identities", "LinkSecrets", "Verdict"]

SECRET_BYTES = 16


class LinkSecrets(NamedTuple):
    """What a link was given when its agent joined, and the key that its agent proved ("": none)."""

    name: AgentName
    link: bytes
    key: str
    hot_route: bytes
    bulk_token: bytes

    def __repr__(self) -> str:
        return f"LinkSecrets({self.name!r}, secrets hidden)"


class Verdict(NamedTuple):
    """What to do with a message: take it (both empty), refuse its sender, or drop it."""

    refuse: str = ""
    drop: str = ""


class Identities:
    """Judges messages by the key of their sender.

    Args:
        name_of: whose key this is now, None for nobody's; None instead of a function where links
            have no keys, so that agents are who they say they are.
    """

    def __init__(self, name_of: Callable[[str], AgentName | None] | None) -> None:
        self._name_of = name_of
        self._welcomed: dict[AgentName, LinkSecrets] = {}

    def judge(self, message: AgentMessage, key: str, holder: AgentName | None) -> Verdict:
        """Judge a message.

        Args:
            message: what came.
            key: what its sender proved at the handshake.
            holder: who joined on the link that it came on.
        """
        if self._name_of is None:
            return Verdict()
        name = self._name_of(key)
        if name is None:
            return Verdict(drop="a message of a key that was revoked")
        if holder is not None and holder != name:
            return Verdict(drop=f"a message of agent {name!r} on the link of {holder!r}")
        if isinstance(message, Hello) and message.name != name:
            return Verdict(
                refuse=f"its key is that of agent {name!r}, but it calls itself "
                f"{message.name[:64]!r}; leave --name out, or make a join file for that name: "
                f"headwise keys add"
            )
        return Verdict()

    def welcome(self, name: AgentName, link: bytes, key: str) -> LinkSecrets:
        """Give a link what its agent needs for the other two channels."""
        # libzmq keeps routing ids that begin with a zero byte for itself.
        route = b"h" + secrets.token_bytes(SECRET_BYTES)
        given = LinkSecrets(name, link, key, route, secrets.token_bytes(SECRET_BYTES))
        self._welcomed[name] = given
        return given

    def get(self, name: AgentName) -> LinkSecrets | None:
        """Return what the present or last link of an agent was given."""
        return self._welcomed.get(name)

    def end(self, name: AgentName, link: bytes) -> LinkSecrets | None:
        """Forget a link that ended; return what it had been given."""
        given = self._welcomed.get(name)
        if given is None or given.link != link:
            return None
        return self._welcomed.pop(name)

    def invalid(self) -> list[LinkSecrets]:
        """Return the links whose keys are not, or no longer, their agents'."""
        name_of = self._name_of
        if name_of is None:
            return []
        return [given for given in self._welcomed.values() if name_of(given.key) != given.name]
