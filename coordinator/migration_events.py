"""What happens during a migration, and what it asks its runtime to do about it.

Plain data between the state machine of `migration` and engine, control link and clock.
"""

from enum import Enum
from typing import NamedTuple

from agent.ids import AgentName, KvId
from agent.migration_messages import MoveOrder, MoveReport

__all__ = [
    "Action",
    "AgentFailed",
    "AgentLost",
    "AgentReady",
    "AgentRelinked",
    "Assign",
    "AtBoundary",
    "Cancel",
    "Closed",
    "Commit",
    "Event",
    "Finished",
    "Hold",
    "Opened",
    "Outcome",
    "Reported",
    "Resume",
    "Send",
    "Stepping",
    "Tick",
    "Truncated",
]


class Outcome(Enum):
    """How a migration ended.

    MOVED: all texts are in the new epoch. ABORTED: all are in the old one, which is as it was.
    BROKEN: an agent was lost, or got stuck, after the first text had changed over: a plan without
    it must be made, and rows that only it had be computed again.
    """

    MOVED = "moved"
    ABORTED = "aborted"
    BROKEN = "broken"


# Events.


class Opened(NamedTuple):
    """A text was opened, at its boundary with n_tokens rows; or forked, sharing fork_tokens."""

    kv_id: KvId
    n_tokens: int
    reserve_tokens: int
    fork_of: KvId | None = None
    fork_tokens: int = 0


class AtBoundary(NamedTuple):
    """No step of the text is on its way and n_tokens rows are written on all holders.

    With `prefill` nobody waits for its next token yet: it may pause for longer.
    """

    kv_id: KvId
    n_tokens: int
    prefill: bool = False


class Stepping(NamedTuple):
    """A step of the text begins, in the epoch that `epoch_of` gives; not while it is held."""

    kv_id: KvId


class Truncated(NamedTuple):
    """Rows from n_tokens on are void; the text is at its boundary."""

    kv_id: KvId
    n_tokens: int


class Closed(NamedTuple):
    """The text was released, in the epoch that it was in."""

    kv_id: KvId


class AgentReady(NamedTuple):
    """A target has its weights and its pool for the new epoch."""

    name: AgentName


class AgentFailed(NamedTuple):
    """A target cannot carry its assignment out."""

    name: AgentName
    reason: str


class AgentLost(NamedTuple):
    """An agent is gone, and what it held."""

    name: AgentName
    reason: str


class AgentRelinked(NamedTuple):
    """An agent's control link was lost and stands again, and the agent kept what it held."""

    name: AgentName


class Reported(NamedTuple):
    """An agent's message."""

    name: AgentName
    message: MoveReport


class Cancel(NamedTuple):
    """Somebody does not want the migration any more; without effect after the first COMMIT."""

    reason: str


class Tick(NamedTuple):
    """Time has passed."""


Event = (
    Opened | AtBoundary | Stepping | Truncated | Closed | AgentReady | AgentFailed | AgentLost
    | AgentRelinked | Reported | Cancel | Tick
)  # fmt: skip


# Actions.


class Assign(NamedTuple):
    """Send the agent its assignment of the new epoch."""

    name: AgentName


class Send(NamedTuple):
    """Send a control message."""

    name: AgentName
    message: MoveOrder


class Hold(NamedTuple):
    """Begin no step of the text until COMMIT or RESUME."""

    kv_id: KvId


class Resume(NamedTuple):
    """The text goes on in the old epoch."""

    kv_id: KvId


class Commit(NamedTuple):
    """From now on the text is of the new epoch; release it on `leaves`, in the old epoch."""

    kv_id: KvId
    leaves: tuple[AgentName, ...]


class Finished(NamedTuple):
    """The migration is over; `unfreed` agents have not said that they freed what lost."""

    outcome: Outcome
    reason: str
    culprit: AgentName | None = None
    unfreed: frozenset[AgentName] = frozenset()


Action = Assign | Send | Hold | Resume | Commit | Finished
