"""When to plan: the long-lived coordinator's decisions as a state machine, events in, actions out.

Agents come and go. With enough of them here and no plan in force, one is made and installed; a
plan whose member is gone is dropped and another one made with who is left; a new agent is used and
a drained one freed, while a text is written by moving it to the new plan. Every change settles
first: boards that share a switch or a power strip come and go together. Only a text that stopped
in the middle, because a board was lost, waits for nothing, and goes on with however few are left.
A cordoned agent keeps what it has but is no part of what is planned anew: by itself no reason for
a plan.
Pure: `serve` owns the clock, the agents and the plan, and carries the actions out.
"""

from collections.abc import Iterable
from typing import NamedTuple

from agent.ids import AgentName, Epoch

__all__ = [
    "Action",
    "Advised",
    "AgentsHere",
    "Cordon",
    "Drain",
    "DropPlan",
    "Event",
    "Install",
    "InstallFailed",
    "Installed",
    "Interrupted",
    "Move",
    "RequestBegan",
    "RequestEnded",
    "Seen",
    "Supervisor",
    "TextStopped",
    "Tick",
    "Undrain",
    "Unfit",
    "Wait",
]

SETTLE_S = 1.0
# Somebody who comes and goes for ever shall not keep the others from being used.
MAX_SETTLES = 10
MIN_RETRY_S = 2.0
MAX_RETRY_S = 60.0


class Seen(NamedTuple):
    """One agent that is here; `ready_epoch` is the plan it is ready to serve, 0 = none."""

    name: AgentName
    ready_epoch: Epoch = Epoch(0)


# Events.


class AgentsHere(NamedTuple):
    """Who is here now, all of them."""

    agents: tuple[Seen, ...]


class Installed(NamedTuple):
    """The plan asked for is in force; `members` hold a part of it."""

    epoch: Epoch
    members: frozenset[AgentName]


class InstallFailed(NamedTuple):
    """The plan asked for is not in force.

    Attributes:
        reason: for people.
        culprits: agents that said that they cannot carry out their part, or were late with it.
        kept: the former plan is still in force: none could be made to replace it.
    """

    reason: str
    culprits: frozenset[AgentName] = frozenset()
    kept: bool = False


class Interrupted(NamedTuple):
    """Nobody waits for the plan asked for any more; none is in force. `RequestEnded` follows."""


class RequestBegan(NamedTuple):
    """A request is being served: the plan must stay."""


class RequestEnded(NamedTuple):
    """It is over; `lost` says why a member could not be reached, "" = all answered."""

    lost: str = ""


class TextStopped(NamedTuple):
    """The request being served waits for another plan; `lost` says why this one is useless."""

    lost: str


class Unfit(NamedTuple):
    """The plan in force cannot stay, for a reason that lies with no agent's loss."""

    reason: str


class Advised(NamedTuple):
    """A plan is known that is worth moving to, of the agents that are usable."""


class Drain(NamedTuple):
    """Somebody wants this agent free of work, whether it is here or not."""

    name: AgentName


class Cordon(NamedTuple):
    """Somebody wants this agent to be given nothing that it does not hold already."""

    name: AgentName


class Undrain(NamedTuple):
    """This agent may be used again, whether it was drained, cordoned or set aside."""

    name: AgentName


class Tick(NamedTuple):
    """Time has passed."""


Event = (
    AgentsHere | Installed | InstallFailed | Interrupted | RequestBegan | RequestEnded
    | TextStopped | Unfit | Advised | Drain | Cordon | Undrain | Tick
)  # fmt: skip

# Actions.


class Install(NamedTuple):
    """Plan with these agents, install it, and report what came of it.

    That is `Installed`, `InstallFailed` or `Interrupted`.
    """

    names: tuple[AgentName, ...]


class Move(NamedTuple):
    """Plan with these agents and move to it what is being written; report as for `Install`."""

    names: tuple[AgentName, ...]


class DropPlan(NamedTuple):
    """The plan in force cannot be served any more; release what is left of it."""

    reason: str


class Wait(NamedTuple):
    """Nothing to do before this time, unless something happens; None = no time is known."""

    until_s: float | None


Action = Install | Move | DropPlan | Wait


class Supervisor:
    """Decides about plans; one `on_event` at a time.

    Args:
        min_agents: how many agents a plan is made with at least.
        settle_s: how long nobody may have come or gone before a plan is made.

    Attributes:
        problem: why the last plan could not be installed, "" = it could.
    """

    def __init__(self, min_agents: int, settle_s: float = SETTLE_S) -> None:
        self._min_agents = min_agents
        self._settle_s = settle_s
        self._here: dict[AgentName, Epoch] = {}
        self._drained: set[AgentName] = set()
        self._cordoned: set[AgentName] = set()
        self._set_aside: set[AgentName] = set()
        self._epoch = Epoch(0)
        self._members: frozenset[AgentName] = frozenset()
        # Whom the plan in force was chosen from; some may have been left out of it.
        self._chosen_from: frozenset[AgentName] = frozenset()
        self._asked: frozenset[AgentName] | None = None
        self._busy = self._stopped = False
        self._lost = ""
        self._changed_s = self._restless_s = float("-inf")
        self._retry_s = MIN_RETRY_S
        self._not_before_s = float("-inf")
        self.problem = ""

    @property
    def in_force(self) -> bool:
        """Whether requests can be served."""
        return bool(self._epoch) and not self._broken()

    @property
    def drained(self) -> frozenset[AgentName]:
        """Who shall not be used."""
        return frozenset(self._drained)

    @property
    def cordoned(self) -> frozenset[AgentName]:
        """Who shall be given nothing new."""
        return frozenset(self._cordoned)

    @property
    def set_aside(self) -> frozenset[AgentName]:
        """Who could not carry out its part; used again after coming back, or after `Undrain`."""
        return frozenset(self._set_aside)

    @property
    def usable(self) -> tuple[AgentName, ...]:
        """Who is here and may be given work: not drained, cordoned or set aside; by name."""
        return tuple(sorted(self._welcome - self._cordoned))

    @property
    def _welcome(self) -> frozenset[AgentName]:
        """Who may keep the work that it has."""
        return frozenset(self._here.keys() - self._drained - self._set_aside)

    @property
    def n_missing(self) -> int:
        """How many more agents a plan needs."""
        return max(0, self._least - len(self.usable))

    @property
    def _least(self) -> int:
        # What has begun is not given up for a number.
        return 1 if self._busy or self._stopped else self._min_agents

    def on_event(self, event: Event, now_s: float) -> list[Action]:
        """Take in what happened at monotonic time now_s; return what to do, in order.

        A `Wait` is always the last action, and the only one while an install or a move runs.
        """
        usable = self.usable
        match event:
            case AgentsHere(agents):
                self._here = {a.name: a.ready_epoch for a in agents}
                self._set_aside &= self._here.keys()
            case Installed(epoch, members):
                self._chosen_from = self._asked or frozenset()
                self._epoch, self._members, self._asked = epoch, members, None
                self._retry_s, self.problem, self._lost = MIN_RETRY_S, "", ""
                # Until the register is looked at again, they are what they have just reported.
                self._here |= {name: epoch for name in members & self._here.keys()}
            case InstallFailed():
                self._on_failure(event, now_s)
            case Interrupted():
                self._asked = None
                self._no_plan()
                return [Wait(None)]
            case RequestBegan():
                self._busy, self._stopped = True, False
            case RequestEnded(lost):
                self._busy = self._stopped = False
                self._lost = self._lost or lost
            case TextStopped(lost):
                self._busy, self._stopped = False, True
                self._lost = self._lost or lost
                # It waits for nothing: what a move or another plan has met with is past.
                self._retry_s, self._not_before_s = MIN_RETRY_S, float("-inf")
            case Unfit(reason) if self._epoch:
                self._lost = self._lost or reason
                # A move that was in vain says nothing of another plan.
                self._retry_s, self._not_before_s = MIN_RETRY_S, float("-inf")
            case Drain(name):
                self._drained.add(name)
            case Cordon(name):
                self._cordoned.add(name)
            case Undrain(name):
                self._drained.discard(name)
                self._cordoned.discard(name)
                self._set_aside.discard(name)
        if self.usable != usable:
            self._on_change(now_s)
        return self._decide(now_s, isinstance(event, Advised))

    def _on_failure(self, event: InstallFailed, now_s: float) -> None:
        asked, self._asked, self.problem = self._asked or frozenset(), None, event.reason
        self._not_before_s = now_s + self._retry_s
        self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)
        if event.kept:
            # Not again only for who is new: the plan in force is as good as it gets.
            self._chosen_from = asked
            return
        self._no_plan()
        if len(asked - event.culprits) >= self._least:
            # One bad board shall not keep the others from serving.
            self._set_aside |= event.culprits

    def _on_change(self, now_s: float) -> None:
        if now_s - self._changed_s > self._settle_s:
            self._restless_s = now_s
        self._changed_s = now_s
        # Other agents, other chances.
        self._retry_s, self._not_before_s = MIN_RETRY_S, float("-inf")

    def _decide(self, now_s: float, advised: bool) -> list[Action]:
        if self._asked is not None:
            return [Wait(None)]
        if self._busy:
            return self._decide_move(now_s, advised)
        actions: list[Action] = []
        reason = self._reason_to_drop()
        if reason:
            self._no_plan()
            actions.append(DropPlan(reason))
        self._chosen_from &= frozenset(self._here)
        if not self._wants_plan():
            return [*actions, Wait(None)]
        due_s = self._not_before_s if self._stopped else self._settled_s()
        if now_s < due_s:
            return [*actions, Wait(due_s)]
        self._asked = frozenset(self.usable)
        return [*actions, Install(self.usable), Wait(None)]

    def _decide_move(self, now_s: float, advised: bool) -> list[Action]:
        """Decide while a text is being written: what is lost already shows when it steps."""
        if not self.in_force or not (advised or self._wants_plan()):
            return [Wait(None)]
        due_s = self._not_before_s if advised else self._settled_s()
        if now_s < due_s:
            return [Wait(due_s)]
        self._asked = frozenset(self.usable)
        return [Move(self.usable), Wait(None)]

    def _settled_s(self) -> float:
        """Return when the last change has settled and a failed plan may be tried again."""
        settled_s = min(
            self._changed_s + self._settle_s, self._restless_s + MAX_SETTLES * self._settle_s
        )
        return max(settled_s, self._not_before_s)

    def _reason_to_drop(self) -> str:
        if not self._epoch:
            return ""
        drained = self._members & self._drained
        if drained and self.n_missing:
            return f"agent {_listed(drained)} is drained and too few others are here"
        return self._broken()

    def _broken(self) -> str:
        """Return why the plan in force cannot be served, or ""."""
        gone = [n for n in sorted(self._members) if self._here.get(n) != self._epoch]
        return f"agent {gone[0]!r} was lost" if gone else self._lost

    def _wants_plan(self) -> bool:
        if self.n_missing:
            return False
        newcomers = frozenset(self.usable) - self._chosen_from
        return not self._epoch or bool(newcomers or self._members - self._welcome)

    def _no_plan(self) -> None:
        self._epoch, self._lost = Epoch(0), ""
        self._members = self._chosen_from = frozenset()


def _listed(names: Iterable[AgentName]) -> str:
    return ", ".join(map(repr, sorted(names)))
