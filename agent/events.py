"""What happens to an agent's session, and what it asks its runtime to do about it.

Plain data between the state machine of `session` and the sockets, threads and clock of `runtime`.
"""

from typing import NamedTuple

from agent.arrival import CopyLocal, Place, Room
from agent.departure import Export
from agent.ids import Epoch, RunId
from agent.kv_shape import KvShape
from agent.messages import (
    AgentMessage,
    Assignment,
    BulkRequest,
    CoordinatorMessage,
    Ready,
    Welcome,
)
from agent.migration_messages import Group, KvAsk, KvOffer, KvRows

__all__ = [
    "Action",
    "Adopt",
    "BulkReceived",
    "BulkUp",
    "CancelLoad",
    "CloseHot",
    "CloseMoves",
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
    "MoveEvent",
    "OpenHot",
    "OpenMoves",
    "PoolFailed",
    "PoolJob",
    "Probe",
    "Progress",
    "Received",
    "Rejected",
    "Reserve",
    "Reserved",
    "RowsMissing",
    "RowsPlaced",
    "RowsRead",
    "Send",
    "SendBulk",
    "SendHeartbeat",
    "SpeedChanged",
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
    """The loader is done: the hot loop can take the member, whose KV pool has this shape."""

    key: LoadKey
    ready: Ready
    shape: KvShape


class Reserved(NamedTuple):
    """The loader has a pool of this shape for a mirror."""

    key: LoadKey
    shape: KvShape


class Joined(NamedTuple):
    """The hot loop has taken a member and sent its HELLO frame, or has taken a mirror's pool."""

    key: LoadKey


class LoadFailed(NamedTuple):
    """An assignment cannot be carried out."""

    key: LoadKey
    reason: str


class BulkUp(NamedTuple):
    """The bulk link of migrations is connected, for the first time or anew."""


class BulkReceived(NamedTuple):
    """A request or rows came over the bulk link of migrations; `data` are the rows' bytes."""

    message: KvAsk | KvRows
    data: bytes | memoryview = b""


class RowsRead(NamedTuple):
    """The hot loop has read what migration `key` exports; None = the pool has no such rows."""

    key: LoadKey
    number: int
    data: bytearray | None


class RowsPlaced(NamedTuple):
    """The hot loop has written rows of migration `key` into its pool."""

    key: LoadKey
    number: int


class RowsMissing(NamedTuple):
    """Rows to be copied from one pool of this agent to another are not in the first."""

    key: LoadKey
    number: int
    reason: str


class PoolFailed(NamedTuple):
    """A pool could not take what migration `key` brings."""

    key: LoadKey
    reason: str


class Stop(NamedTuple):
    """Somebody asks this process to end."""

    reason: str


class Tick(NamedTuple):
    """Time has passed."""


class SpeedChanged(NamedTuple):
    """The kernels have become faster or slower."""


MoveEvent = BulkUp | BulkReceived | RowsRead | RowsPlaced | RowsMissing | PoolFailed
Event = (
    LinkUp | LinkLost | Rejected | Received | Progress | Loaded | Reserved | Joined | LoadFailed
    | MoveEvent | Stop | Tick | SpeedChanged
)  # fmt: skip


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


class Reserve(NamedTuple):
    """Reserve the pool of a mirror of these head groups."""

    key: LoadKey
    shape: KvShape
    groups: tuple[Group, ...]


class CancelLoad(NamedTuple):
    """Give up loading for an assignment, or reserving for a mirror."""

    key: LoadKey


class Probe(NamedTuple):
    """Pull bytes of no meaning to measure the bulk link."""

    n_bytes: int


class Adopt(NamedTuple):
    """Hand a loaded member to the hot loop."""

    key: LoadKey


class Drop(NamedTuple):
    """Free what an assignment holds."""

    key: LoadKey


class OpenMoves(NamedTuple):
    """A migration begins: open its bulk link, and have the hot loop expect work for its pools."""


class CloseMoves(NamedTuple):
    """No migration is left: close its bulk link."""


class PoolJob(NamedTuple):
    """Have the hot loop work on its pools for migration `key`, between two frames.

    `Room` and `Place` are about the pool of the epoch that the migration leads to. With `hurried`
    more is expected, in the middle of steps too; that costs steps time, so not for a mirror.
    """

    key: LoadKey
    work: Room | Place | CopyLocal | Export
    hurried: bool = True


class SendBulk(NamedTuple):
    """Send on the bulk link of migrations; of KvRows, `data` follows as a frame of its own."""

    message: KvOffer | KvAsk | KvRows | BulkRequest
    data: bytes | bytearray = b""


class Warn(NamedTuple):
    """Tell the operator."""

    text: str


class Exit(NamedTuple):
    """End the process."""

    code: int
    reason: str


Action = (
    Dial | HangUp | Send | SendHeartbeat | OpenHot | CloseHot | Load | Reserve | CancelLoad
    | Probe | Adopt | Drop | OpenMoves | CloseMoves | PoolJob | SendBulk | Warn | Exit
)  # fmt: skip
