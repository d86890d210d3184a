"""What the register knows of one agent. Pure.

An agent serves at most one epoch and may get ready for one to come beside it: weights and KV of
both are on the board until the coordinator has it free one of them.
"""

from dataclasses import dataclass, field
from enum import Enum

from agent.ids import AgentName, Epoch
from agent.messages import Heartbeat, Hello, Loading, Ready
from coordinator.measured import Measured

__all__ = ["GONE", "Agent", "AgentState", "Coming"]


class AgentState(Enum):
    """Where an agent stands; JOINING = welcomed, not heard from since."""

    JOINING = "joining"
    IDLE = "idle"
    LOADING = "loading"
    READY = "ready"
    LOST = "lost"
    LEFT = "left"


GONE = (AgentState.LOST, AgentState.LEFT)


@dataclass(frozen=True)
class Coming:
    """An assignment that an agent gets ready for while it serves another.

    Attributes:
        epoch: the assignment's.
        loading: how far it is, if it has said so.
        ready: what it holds, once it can serve it.
    """

    epoch: Epoch
    loading: Loading | None = None
    ready: Ready | None = None


@dataclass
class Agent:
    """What is known of one agent; changed by `Membership` only.

    Attributes:
        epoch: the assignment it loads or serves; 0 = none.
        coming: the one that it gets ready for besides; never without `epoch`.
        reason: why it is gone, or what failed last.
        joined_s: when it said HELLO.
        measured: what its heartbeats have told of its speed and links.
        scarce_bytes: what it could hold when it was short of memory; None = it was not, of late.
        progress_s: when its progress counter last changed, or an answer began to be owed.
    """

    link: bytes
    hello: Hello
    heard_s: float
    state: AgentState = AgentState.JOINING
    epoch: Epoch = field(default=Epoch(0))
    reason: str = ""
    heartbeat: Heartbeat | None = None
    loading: Loading | None = None
    ready: Ready | None = None
    progress_s: float | None = None
    reported_stuck: bool = False
    joined_s: float = 0.0
    measured: Measured = field(default=Measured())
    coming: Coming | None = None
    scarce_bytes: int | None = None

    @property
    def name(self) -> AgentName:
        """The agent's name."""
        return self.hello.name

    @property
    def alive(self) -> bool:
        """Whether the agent is here, in whatever state."""
        return self.state not in GONE

    @property
    def is_loading(self) -> bool:
        """Whether it gets ready for an assignment, whether it serves another or not."""
        coming = self.coming
        return self.state is AgentState.LOADING or (coming is not None and coming.ready is None)

    def holds(self, epoch: Epoch) -> bool:
        """Whether it has, or gets ready for, the assignment of an epoch."""
        return epoch in (self.epoch, self.coming.epoch if self.coming else Epoch(0))

    def is_ready(self, epoch: Epoch) -> bool:
        """Whether it can serve an epoch."""
        if self.coming is not None and self.coming.epoch == epoch:
            return self.coming.ready is not None
        return self.state is AgentState.READY and self.epoch == epoch

    def loading_of(self, epoch: Epoch) -> Loading | None:
        """Return how far it is with an epoch, if it has said so."""
        if self.coming is not None and self.coming.epoch == epoch:
            return self.coming.loading
        return self.loading if self.epoch == epoch else None
