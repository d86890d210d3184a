"""What an agent makes of links that do not come up."""

import pytest
import zmq

from agent.events import LinkLost, LinkUp, Rejected
from agent.handshake import MAX_BROKEN, MONITORED, Handshake

AUTH = zmq.EVENT_HANDSHAKE_FAILED_AUTH
PROTOCOL = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
BROKEN = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
CLOSED = zmq.EVENT_DISCONNECTED
UP = zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_a_link_comes_up_and_closes() -> None:
    handshake = Handshake(has_keys=True)
    assert handshake.on_event(UP) == LinkUp()
    assert handshake.on_event(CLOSED) == LinkLost("the connection closed")


@pytest.mark.parametrize(
    ("has_keys", "event", "text"),
    [
        (True, AUTH, "does not know this agent's key"),
        (True, PROTOCOL, "speaks without keys"),
        (False, PROTOCOL, "it wants keys; start this agent with --join FILE"),
    ],
)
def test_a_refusal_is_explained_at_once(has_keys: bool, event: zmq.Event, text: str) -> None:
    found = Handshake(has_keys).on_event(event)
    assert isinstance(found, Rejected)
    assert text in found.reason


@pytest.mark.parametrize(
    ("has_keys", "text"), [(True, "most likely its key is not the one"), (False, "it wants keys")]
)
def test_handshakes_broken_off_again_and_again_are_explained_once(
    has_keys: bool, text: str
) -> None:
    handshake = Handshake(has_keys)
    # libzmq tries anew by itself; one broken handshake may be a coordinator that just ends.
    found = [handshake.on_event(e) for _ in range(2 * MAX_BROKEN) for e in (BROKEN, CLOSED)]
    told = [event for event in found if event is not None]
    assert len(told) == 1
    assert found.index(told[0]) == 2 * MAX_BROKEN - 2
    assert isinstance(told[0], Rejected)
    assert text in told[0].reason


def test_every_event_that_matters_is_monitored() -> None:
    assert all(MONITORED & event for event in (AUTH, PROTOCOL, BROKEN, CLOSED, UP))
