"""What a socket's monitor tells about a link that does not come up, in words for the operator.

libzmq gives up for good after some refusals and tries for ever after others; both look like
silence to whoever only sends and receives. Without sockets or clock.
"""

import zmq

from agent.events import Event, LinkLost, LinkUp, Rejected

__all__ = ["MONITORED", "Handshake"]

MONITORED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)
# A coordinator that is just ending breaks a handshake off too, and one that speaks otherwise may
# close before we have read why; neither does so again and again.
MAX_BROKEN = 8


class Handshake:
    """Follows the events of one socket.

    Args:
        has_keys: whether this agent speaks CURVE.
    """

    def __init__(self, has_keys: bool) -> None:
        self._has_keys = has_keys
        self._n_broken = 0
        self._is_up = False

    def on_event(self, event: int) -> Event | None:
        """Return what an event of the monitor means to the session, if anything."""
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._is_up = True
            return LinkUp()
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return Rejected(
                "it does not know this agent's key, or no longer; give this board a new join "
                "file: `headwise keys add --rotate NAME` on the coordinator"
            )
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return Rejected(self._other_mechanism())
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._n_broken += 1
            return Rejected(self._broken()) if self._n_broken == MAX_BROKEN else None
        if event == zmq.EVENT_DISCONNECTED and self._is_up:
            return LinkLost("the connection closed")
        return None

    def _other_mechanism(self) -> str:
        if self._has_keys:
            return (
                "what listens there speaks without keys; start the coordinator with the keys "
                "that this join file is from, or this agent without --join"
            )
        return (
            "it wants keys; start this agent with --join FILE, a file that "
            "`headwise keys add NAME` makes on the coordinator (or it is no headwise coordinator)"
        )

    def _broken(self) -> str:
        if self._has_keys:
            return (
                f"it broke off {MAX_BROKEN} handshakes; most likely its key is not the one in the "
                f"join file: make the file anew with `headwise keys add --rotate NAME` there, or "
                f"correct the address"
            )
        return self._other_mechanism()
