"""The desk: where clients' threads hand in requests and see what the serving thread has published.

Every method may be called from any thread; none waits. `service` is the serving thread.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.ids import AgentName, Epoch
from agent.versions import our_versions
from coordinator.admin_messages import Generate, LivePlan, Notice, Status
from coordinator.cluster import Cluster
from coordinator.inbox import Inbox, Request
from coordinator.move import Move
from coordinator.plan import Plan
from coordinator.status import MirrorStatus, MoveStatus, agent_statuses
from coordinator.supervisor import Cordon, Drain, Undrain
from kernels.errors import InputError, PlanError

__all__ = ["Desk", "View", "at_work"]


@dataclass(frozen=True)
class View:
    """What the serving thread has published last; never changed, only replaced.

    Attributes:
        holders: who holds a part of the plan in force, or is about to.
        move: the migration that is under way, if there is one.
        mirror: the second copy of keys and values; None: nobody asked for one.
    """

    state: str = "waiting"
    epoch: Epoch = field(default=Epoch(0))
    plan: Plan | None = None
    placement: str = ""
    holders: frozenset[AgentName] = frozenset()
    drained: frozenset[AgentName] = frozenset()
    cordoned: frozenset[AgentName] = frozenset()
    set_aside: frozenset[AgentName] = frozenset()
    problem: str = ""
    n_served: int = 0
    n_failed: int = 0
    move: MoveStatus | None = None
    mirror: MirrorStatus | None = None


class Desk:
    """Answers clients.

    Args:
        cluster: whose agents and model this is about.
        inbox: to the serving thread.
        min_agents: how many agents a plan is made with at least.
        known_names: names that have a key, whether here or not.
        stop: begins to end the coordinator.

    Attributes:
        view: replaced by the serving thread whenever something has changed.
    """

    def __init__(
        self,
        cluster: Cluster,
        inbox: Inbox,
        min_agents: int,
        known_names: Callable[[], list[AgentName]],
        stop: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._inbox = inbox
        self._min_agents = min_agents
        self._known_names = known_names
        self._started_s = time.monotonic()
        self.view = View()
        self.stop = stop

    def submit(self, ask: Generate) -> Request:
        """Put a request in line.

        Raises:
            ResourceError: too many wait already, or the coordinator is ending.
        """
        view, n_before = self.view, len(self._inbox.waiting())
        request = self._inbox.submit(ask)
        if view.state == "loading":
            request.notice(Notice(f"weights are being loaded by {', '.join(sorted(view.holders))}"))
        elif n_before or view.state == "writing":
            n_before += view.state == "writing"
            request.notice(Notice(f"requests before this one: {n_before}"))
        return request

    def status(self) -> Status:
        """Return how the cluster is."""
        cluster, view = self._cluster, self.view
        geometry = cluster.directory.geometry
        return Status(
            state=view.state,
            model=cluster.directory.directory.name,
            model_id=cluster.directory.model_id,
            run_id=f"{cluster.run_id:016x}",
            epoch=view.epoch,
            pid=os.getpid(),
            port=cluster.control_port,
            uptime_s=time.monotonic() - self._started_s,
            min_agents=self._min_agents,
            n_served=view.n_served,
            n_failed=view.n_failed,
            n_waiting=len(self._inbox.waiting()),
            **cluster.counters,
            problem=view.problem,
            software=our_versions().software,
            agents=agent_statuses(
                cluster.control.agents(),
                view.plan,
                view.epoch,
                geometry,
                view.drained,
                view.set_aside,
                cluster.installer.exchange_s(),
                view.cordoned,
            ),
            move=view.move,
            mirror=view.mirror,
        )

    def live_plan(self) -> LivePlan:
        """Return the plan in force.

        Raises:
            PlanError: none is.
        """
        view = self.view
        if view.plan is None:
            raise PlanError(f"no plan is in force: {view.problem or 'agents are awaited'}")
        return LivePlan(view.epoch, view.plan, view.placement)

    def drain(self, name: AgentName, on: bool) -> None:
        """Note that an agent shall be free of work, or may be used again.

        Raises:
            InputError: nobody has heard of it.
        """
        self._check_known(name)
        self._inbox.post(Drain(name) if on else Undrain(name))

    def cordon(self, name: AgentName) -> None:
        """Note that an agent shall be given nothing new.

        Raises:
            InputError: nobody has heard of it.
        """
        self._check_known(name)
        self._inbox.post(Cordon(name))

    def _check_known(self, name: AgentName) -> None:
        view = self.view
        names = {agent.name for agent in self._cluster.control.agents()}
        names |= {*self._known_names(), *view.drained, *view.cordoned}
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise InputError(f"no agent is named {name!r}; known are: {known}")

    def holds(self, name: AgentName) -> bool:
        """Return whether an agent that shall be drained may still have work."""
        view = self.view
        return name in view.holders or name not in view.drained

    def is_cordoned(self, name: AgentName) -> bool:
        """Return whether no plan gives an agent anything new from now on."""
        return name in self.view.cordoned


def at_work(plan: Plan | None, move: Move | None) -> frozenset[AgentName]:
    """Return who has work by a plan, or gets some by the migration that is under way."""
    held = frozenset(member.agent for member in plan.members) if plan else frozenset()
    return held | move.agents if move else held
