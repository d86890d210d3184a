"""The register of agents behind a lock: what other threads ask about it and wait for.

The decisions are `membership`'s and `loading`'s. Does not know sockets: `control`, which fills it,
does.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from agent.ids import AgentName, Epoch
from agent.migration_messages import MoveReport
from coordinator.loading import LoadWatch
from coordinator.membership import Agent, Membership
from coordinator.offers import costs_of, link_of, offers_of
from coordinator.planner.place import Costs, Link, Offer
from kernels.errors import AgentLostError, LateAgentsError, RemoteError

__all__ = ["AWAITED_S", "POLL_S", "Register"]

POLL_S = 0.1
# Whoever was waited for so lately still is.
AWAITED_S = 0.5
# Reports of migrations that wait to be taken: all together, and one agent's, so that none can keep
# the others' out. What finds no room is sent again by its agent.
MAX_REPORTS = 4096
MAX_REPORTS_OF_ONE = 512
# More losses than that, and whoever asks has long given up; the oldest are forgotten.
MAX_LOSSES = 256


class Register:
    """What is known of the agents of one run.

    Args:
        membership: the state machine; touched under the lock only.

    Attributes:
        how_to_join: what to tell users who miss an agent.
        on_news: called when an agent came, went, got ready or failed; must not wait.
        n_reports_dropped: reports of migrations that found no room.
    """

    def __init__(self, membership: Membership) -> None:
        self.how_to_join = ""
        self._membership = membership
        # Reentrant: what is carried out for one event may bring about another.
        self._changed = threading.Condition()
        self._failures: dict[AgentName, tuple[Epoch, str]] = {}
        self._awaited_s: dict[AgentName, float] = {}
        self._reports: deque[tuple[AgentName, MoveReport]] = deque()
        self._n_reports: Counter[AgentName] = Counter()
        self.n_reports_dropped = 0
        self._losses: deque[tuple[AgentName, str]] = deque(maxlen=MAX_LOSSES)
        # Whether an agent came, went, got ready or failed since `wait_reports` returned last.
        self._is_news = False
        self.on_news: Callable[[], None] = lambda: None
        # Called when an agent begins to be waited for.
        self._on_awaited: Callable[[], None] = lambda: None
        self._fault = ""
        self._exit_reason: Callable[[AgentName], str] = lambda _: ""
        self._is_stopped: Callable[[AgentName], bool] = lambda _: False
        self._is_watching = False

    def watch(
        self, exit_reason: Callable[[AgentName], str], is_stopped: Callable[[AgentName], bool]
    ) -> None:
        """Ask now and then whether the process of a local agent has ended, or is stopped."""
        self._exit_reason, self._is_stopped, self._is_watching = exit_reason, is_stopped, True

    def offers(self, to_the_last: bool = False) -> list[Offer]:
        """Return what each agent that is here offers, by name; as measured, once it has worked.

        `to_the_last` includes what those that were short of memory keep free.
        """
        with self._changed:
            return offers_of(self._membership.alive(), to_the_last)

    def link(self, names: Sequence[AgentName] | None = None) -> Link:
        """Return the slowest links of some agents that are here, None for all of them."""
        with self._changed:
            return link_of(self._membership.alive(), names)

    def costs(self) -> Costs:
        """Return the fixed costs that go with the rates of `offers`."""
        with self._changed:
            return costs_of(self._membership.alive())

    def agents(self) -> list[Agent]:
        """Return a copy of what is known of each agent, those that are gone included, by name.

        Raises:
            RemoteError: the thread that keeps the register has ended.
        """
        with self._changed:
            self._raise_fault()
            return [replace(agent) for agent in self._membership.agents()]

    def is_ready(self, name: AgentName, epoch: Epoch) -> bool:
        """Tell whether an agent can serve an epoch."""
        with self._changed:
            agent = self._membership.get(name)
            return agent is not None and agent.alive and agent.is_ready(epoch)

    def failure(self, name: AgentName, epoch: Epoch) -> str:
        """Return why an agent cannot carry out its part of a plan, "" = nothing is known."""
        with self._changed:
            at, reason = self._failures.get(name, (Epoch(0), ""))
            return reason if at == epoch else ""

    def failed(self, epoch: Epoch) -> frozenset[AgentName]:
        """Return the agents that could not carry out their part of a plan."""
        with self._changed:
            return frozenset(name for name, (at, _) in self._failures.items() if at == epoch)

    def lost_reason(self, name: AgentName) -> str:
        """Return why an agent that owes an answer is gone, or ""; cheap, from any thread."""
        with self._changed:
            if self._fault:
                return self._fault
            now_s = time.monotonic()
            was_s, self._awaited_s[name] = self._awaited_s.get(name, float("-inf")), now_s
            if now_s - was_s >= AWAITED_S:
                self._on_awaited()
            agent = self._membership.get(name)
            if agent is None:
                return "it never said hello"
            return "" if agent.alive else agent.reason or "it is gone"

    def wait_agents(self, n_agents: int, wait_s: float, names: Sequence[AgentName] = ()) -> None:
        """Wait until n_agents are here.

        Args:
            n_agents: how many.
            wait_s: how long at most.
            names: local agents among them; if the process of one ends, waiting is in vain.

        Raises:
            RemoteError: too few in time; says who is here.
            AgentLostError: a local agent's process ended.
        """
        deadline_s = time.monotonic() + wait_s
        with self._changed:
            while len(here := [a.name for a in self._membership.alive()]) < n_agents:
                for name in names:
                    reason = self._exit_reason(name)
                    if reason:
                        raise AgentLostError(f"agent {name!r} did not start: {reason}")
                self._raise_fault()
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise RemoteError(
                        f"{len(here)} of {n_agents} agents are here after {wait_s:g} s "
                        f"({', '.join(here) or 'none'}); {self.how_to_join}"
                    )
                self._changed.wait(min(left_s, POLL_S))

    def wait_ready(
        self,
        epoch: Epoch,
        n_bytes: Mapping[AgentName, int],
        stall_s: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until every member of a plan is ready to serve it.

        Args:
            epoch: the plan's.
            n_bytes: the weights of each member's part.
            stall_s: how long a member may make no progress; see `loading`.
            meanwhile: called now and then, must not wait.

        Raises:
            RemoteError: an agent cannot carry out its part.
            LateAgentsError: agents made no progress, or too little; names them.
            AgentLostError: an agent is gone.
        """
        watch = LoadWatch(n_bytes, stall_s, time.monotonic())
        with self._changed:
            while True:
                self._raise_fault()
                meanwhile()
                waiting = [name for name in n_bytes if not self._is_ready(name, epoch)]
                if not waiting:
                    return
                now_s = time.monotonic()
                for name in waiting:
                    agent = self._membership.get(name)
                    loading = agent.loading_of(epoch) if agent is not None else None
                    if loading is not None:
                        watch.note(name, loading.done_bytes, now_s)
                late = watch.late(waiting, now_s)
                if late is not None:
                    raise LateAgentsError(f"agents {', '.join(late.names)}: {late.why}", late.names)
                # Progress wakes nobody.
                self._changed.wait(min(watch.due_s(waiting) - now_s, 1.0))

    def take_reports(self) -> list[tuple[AgentName, MoveReport]]:
        """Return what agents have reported of migrations since this was asked, in order."""
        with self._changed:
            reports = list(self._reports)
            self._reports.clear()
            self._n_reports.clear()
            return reports

    def wait_reports(self, timeout_s: float) -> None:
        """Wait until there are reports to take, or an agent came, went, got ready or failed.

        Returns at once if any of that happened since this returned last, or after timeout_s.

        Raises:
            RemoteError: the thread that keeps the register has ended.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._reports or self._is_news or self._fault, max(timeout_s, 0.0)
            )
            self._raise_fault()
            self._is_news = False

    def losses(self) -> list[tuple[AgentName, str]]:
        """Return who was lost since this was asked last, and why, in order."""
        with self._changed:
            losses = list(self._losses)
            self._losses.clear()
            return losses

    def _keep_report(self, name: AgentName, report: MoveReport) -> None:
        if len(self._reports) >= MAX_REPORTS or self._n_reports[name] >= MAX_REPORTS_OF_ONE:
            self.n_reports_dropped += 1
            return
        self._reports.append((name, report))
        self._n_reports[name] += 1

    def _is_ready(self, name: AgentName, epoch: Epoch) -> bool:
        """Whether an agent is ready to serve an epoch; raises if it never will be."""
        agent = self._membership.get(name)
        if agent is None or not agent.alive:
            why = agent.reason if agent else "it never said hello"
            raise AgentLostError(f"agent {name!r} was lost while loading: {why}", name)
        failed_epoch, reason = self._failures.get(name, (Epoch(0), ""))
        if failed_epoch == epoch:
            raise RemoteError(f"agent {name!r} cannot load its part: {reason}")
        return agent.is_ready(epoch)

    def _raise_fault(self) -> None:
        if self._fault:
            raise RemoteError(f"{self._fault}; start the coordinator again")
