"""The control channel's door: who is behind each message, and whose links must end.

Used by the control thread. The decisions are `identity`'s, the keys `gate`'s.
"""

import logging
from collections.abc import Callable

import zmq

from agent.curve import peer_key
from agent.ids import AgentName
from agent.messages import decode_agent_message
from coordinator.evictor import Evictor
from coordinator.gate import Gate
from coordinator.identity import Identities, LinkSecrets
from coordinator.membership_events import Received, Refuse
from coordinator.plain_text import MAX_REASON_CHARS, clean, one_line
from kernels.errors import WireError

__all__ = ["FrontDoor"]

log = logging.getLogger(__name__)


class FrontDoor:
    """Judges what arrives on the control socket.

    Args:
        context: the socket's.
        socket: the control ROUTER, already bound.
        gate: whose keys belong to whom; None: links have no keys.
        on_end: called when an agent is gone, with what its link had been given.

    Attributes:
        n_dropped: messages that were unreadable or came from the wrong sender.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        socket: zmq.Socket[bytes],
        gate: Gate | None,
        on_end: Callable[[LinkSecrets], None],
    ) -> None:
        self._gate = gate
        self._gate_version = gate.version if gate else 0
        self._identities = Identities(gate.name_of if gate else None)
        self._on_end = on_end
        self._evictor = Evictor(context, socket)
        self._sender: zmq.Frame | None = None
        self.n_dropped = 0

    def read(
        self, frames: list[zmq.Frame], holder_of: Callable[[bytes], AgentName | None]
    ) -> Received | Refuse | None:
        """Return what to do with a message: take it in, refuse its sender, or nothing.

        Args:
            frames: as a ROUTER receives them.
            holder_of: returns who joined on a link.
        """
        link = frames[0].bytes
        try:
            if len(frames) != 2:
                raise WireError(f"a message of {len(frames)} parts")
            message = clean(decode_agent_message(frames[1].bytes))
        except WireError as e:
            # What the decoder complains of may quote the message.
            self._drop(one_line(str(e), MAX_REASON_CHARS))
            return None
        self._sender = frames[0]
        verdict = self._identities.judge(message, peer_key(frames[0]), holder_of(link))
        if verdict.drop:
            self._drop(verdict.drop)
            return None
        if verdict.refuse:
            return Refuse(link, verdict.refuse, retry=False)
        return Received(link, message)

    def _drop(self, what: str) -> None:
        self.n_dropped += 1
        if self.n_dropped & (self.n_dropped - 1) == 0:
            log.warning("control: dropped %s (%d dropped so far)", what, self.n_dropped)

    def welcome(self, name: AgentName, link: bytes) -> LinkSecrets:
        """Give the sender of the last message what it needs for the other channels."""
        assert self._sender is not None, "welcomed before it said anything"
        self._evictor.met(self._sender)
        return self._identities.welcome(name, link, peer_key(self._sender))

    def secrets_of(self, name: AgentName) -> LinkSecrets | None:
        """Return what the link of an agent that is here was given."""
        return self._identities.get(name)

    def on_lost(self, name: AgentName, link: bytes) -> None:
        """Forget an agent's link and have its other channels closed."""
        ended = self._identities.end(name, link)
        if ended is not None:
            self._on_end(ended)

    def newly_invalid(self) -> list[LinkSecrets]:
        """Return the links whose keys have left the allow-list since this was asked last."""
        if self._gate is None or self._gate.version == self._gate_version:
            return []
        # Read first: what changes meanwhile is found the next time.
        self._gate_version = self._gate.version
        return self._identities.invalid()

    def evict(self, link: bytes, last_words: bool = False) -> None:
        """End a link of the control socket, at once or after what was sent on it."""
        self._evictor.evict(link, last_words)

    def hang_up(self, link: bytes) -> None:
        """Close the connection of an agent that is not heard any more; it may dial again."""
        self._evictor.hang_up(link)
