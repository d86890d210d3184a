"""What happens to the register of agents, and what it asks its runtime to do about it.

Plain data between the state machine of `membership` and the sockets and clock of `control`.
"""

from typing import NamedTuple

from agent.ids import AgentName, Epoch
from agent.messages import AgentMessage, Ready
from agent.migration_messages import MoveReport

__all__ = [
    "Action",
    "Assigned",
    "BecameReady",
    "Event",
    "LinkLost",
    "LoadFailed",
    "Lost",
    "Received",
    "Refuse",
    "Released",
    "Reported",
    "Stuck",
    "Tick",
    "Welcomed",
]

# Events.


class Received(NamedTuple):
    """A control message arrived on a link."""

    link: bytes
    message: AgentMessage


class LinkLost(NamedTuple):
    """A link is known to be closed, or its process to have ended."""

    link: bytes
    reason: str


class Assigned(NamedTuple):
    """The coordinator has sent an assignment of this epoch to the agent.

    One that is READY in another epoch goes on serving that. Release a former one to come before:
    an agent has room for one.
    """

    name: AgentName
    epoch: Epoch


class Released(NamedTuple):
    """The coordinator has told the agent to free this epoch."""

    name: AgentName
    epoch: Epoch


class Tick(NamedTuple):
    """Time has passed.

    `awaited` are the agents that owe an answer on the hot channel, `stopped` those whose process is
    known to be stopped (SIGSTOP), as only one of this machine can be.
    """

    awaited: frozenset[AgentName] = frozenset()
    stopped: frozenset[AgentName] = frozenset()


Event = Received | LinkLost | Assigned | Released | Tick

# Actions.


class Welcomed(NamedTuple):
    """Send WELCOME: the agent has joined."""

    link: bytes
    name: AgentName


class Refuse(NamedTuple):
    """Send REFUSED and forget the link."""

    link: bytes
    reason: str
    retry: bool


class BecameReady(NamedTuple):
    """The agent can serve its assignment."""

    name: AgentName
    ready: Ready


class LoadFailed(NamedTuple):
    """The agent cannot carry out its assignment and has let go of it."""

    name: AgentName
    epoch: Epoch
    reason: str


class Lost(NamedTuple):
    """The agent is gone (LOST, or LEFT by BYE), and with it what it held.

    `epoch` is the one that it loaded or served, 0 = none; `silent` says that it was not heard.
    """

    name: AgentName
    link: bytes
    epoch: Epoch
    reason: str
    silent: bool = False


class Stuck(NamedTuple):
    """The agent sends heartbeats and owes an answer, but has finished no step for so long."""

    name: AgentName
    for_s: float


class Reported(NamedTuple):
    """The agent says how far its part of a migration is: hand it to whoever drives that."""

    name: AgentName
    report: MoveReport


Action = Welcomed | Refuse | BecameReady | LoadFailed | Lost | Stuck | Reported
