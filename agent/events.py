"""What happens to an agent's session, and what it asks its runtime to do about it.

Plain data between the state machine of `session` and the sockets, threads and clock of `runtime`.
"""

from typing import NamedTuple

from agent.ids import Epoch, RunId
from agent.messages import AgentMessage, Assignment, CoordinatorMessage, Ready, Welcome

__all__ = [
    "Action",
    "Adopt",
    "CancelLoad",
    "CloseHot",
    "Dial",
    "Drop",
    "Event",
    "Exit",
    "HangUp",
    "Joined",
    "LinkLost",
    "LinkUp",
    "Load",
    "LoadFailed",
    "LoadKey",
    "Loaded",
    "OpenHot",
    "Progress",
    "Received",
    "Rejected",
    "Send",
    "SendHeartbeat",
    "Stop",
    "Tick",
    "Warn",
]


class LoadKey(NamedTuple):
    """Names one assignment and all work for it.

    Every coordinator counts epochs from 1: without the run, late work of a former one would pass
    for that of the present one.
    """

    run_id: RunId
    epoch: Epoch


# Events.


class LinkUp(NamedTuple):
    """The control socket is connected."""


class LinkLost(NamedTuple):
    """The control socket lost its connection, or could not be opened at all."""

    reason: str


class Rejected(NamedTuple):
    """Something listens at the coordinator's address, but no link comes about."""

    reason: str


class Received(NamedTuple):
    """A control message arrived."""

    message: CoordinatorMessage


class Progress(NamedTuple):
    """The loader has so many bytes of an assignment on the board."""

    key: LoadKey
    done_bytes: int
    total_bytes: int


class Loaded(NamedTuple):
    """The loader is done: the hot loop can take the member."""

    key: LoadKey
    ready: Ready


class Joined(NamedTuple):
    """The hot loop has taken a member and sent its HELLO frame."""

    key: LoadKey


class LoadFailed(NamedTuple):
    """An assignment cannot be carried out."""

    key: LoadKey
    reason: str


class Stop(NamedTuple):
    """Somebody asks this process to end."""

    reason: str


class Tick(NamedTuple):
    """Time has passed."""


Event = (
    LinkUp | LinkLost | Rejected | Received | Progress | Loaded | Joined | LoadFailed | Stop | Tick
)


# Actions.


class Dial(NamedTuple):
    """Open a new control socket."""


class HangUp(NamedTuple):
    """Close the control socket."""


class Send(NamedTuple):
    """Send a control message."""

    message: AgentMessage


class SendHeartbeat(NamedTuple):
    """Measure and send a heartbeat that names `epoch`."""

    epoch: Epoch


class OpenHot(NamedTuple):
    """Start the hot thread; the ports are those of the WELCOME."""

    welcome: Welcome


class CloseHot(NamedTuple):
    """Stop the hot thread: no more computing, all KV freed."""


class Load(NamedTuple):
    """Bring an assignment's atoms onto the board."""

    assignment: Assignment


class CancelLoad(NamedTuple):
    """Give up loading for an assignment."""

    key: LoadKey


class Adopt(NamedTuple):
    """Hand a loaded member to the hot loop."""

    key: LoadKey


class Drop(NamedTuple):
    """Free what an assignment holds."""

    key: LoadKey


class Warn(NamedTuple):
    """Tell the operator."""

    text: str


class Exit(NamedTuple):
    """End the process."""

    code: int
    reason: str


Action = (
    Dial | HangUp | Send | SendHeartbeat | OpenHot | CloseHot | Load | CancelLoad | Adopt | Drop
    | Warn | Exit
)  # fmt: skip
