"""The register of agents behind a lock: what other threads ask about it and wait for.

The decisions are `membership`'s and `loading`'s. Does not know sockets: `control`, which fills it,
does.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from agent.ids import AgentName, Epoch
from coordinator.loading import LoadWatch
from coordinator.membership import Agent, AgentState, Membership
from coordinator.planner import Offer
from kernels.errors import AgentLostError, LateAgentsError, RemoteError

__all__ = ["POLL_S", "Register"]

POLL_S = 0.1


class Register:
    """What is known of the agents of one run.

    Args:
        membership: the state machine; touched under the lock only.

    Attributes:
        how_to_join: what to tell users who miss an agent.
    """

    def __init__(self, membership: Membership) -> None:
        self.how_to_join = ""
        self._membership = membership
        # Reentrant: what is carried out for one event may bring about another.
        self._changed = threading.Condition()
        self._failures: dict[AgentName, tuple[Epoch, str]] = {}
        self._awaited_s: dict[AgentName, float] = {}
        self._fault = ""
        self._exit_reason: Callable[[AgentName], str] = lambda _: ""

    def watch(self, exit_reason: Callable[[AgentName], str]) -> None:
        """Ask `exit_reason` now and then whether the process of a local agent has ended."""
        self._exit_reason = exit_reason

    def offers(self) -> list[Offer]:
        """Return what each agent that is here offers, by name."""
        with self._changed:
            return [
                Offer(a.name, a.hello.memory_bytes, a.hello.bytes_per_s, a.hello.n_threads)
                for a in self._membership.alive()
            ]

    def agents(self) -> list[Agent]:
        """Return a copy of what is known of each agent, those that are gone included, by name.

        Raises:
            RemoteError: the thread that keeps the register has ended.
        """
        with self._changed:
            self._raise_fault()
            return [replace(agent) for agent in self._membership.agents()]

    def failed(self, epoch: Epoch) -> frozenset[AgentName]:
        """Return the agents that could not carry out their part of a plan."""
        with self._changed:
            return frozenset(name for name, (at, _) in self._failures.items() if at == epoch)

    def lost_reason(self, name: AgentName) -> str:
        """Return why an agent that owes an answer is gone, or ""; cheap, from any thread."""
        with self._changed:
            if self._fault:
                return self._fault
            self._awaited_s[name] = time.monotonic()
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
                    if agent is not None and agent.loading is not None:
                        watch.note(name, agent.loading.done_bytes, now_s)
                late = watch.late(waiting, now_s)
                if late is not None:
                    raise LateAgentsError(f"agents {', '.join(late.names)}: {late.why}", late.names)
                # Progress wakes nobody.
                self._changed.wait(min(watch.due_s(waiting) - now_s, 1.0))

    def _is_ready(self, name: AgentName, epoch: Epoch) -> bool:
        """Whether an agent is ready to serve an epoch; raises if it never will be."""
        agent = self._membership.get(name)
        if agent is None or not agent.alive:
            why = agent.reason if agent else "it never said hello"
            raise AgentLostError(f"agent {name!r} was lost while loading: {why}")
        failed_epoch, reason = self._failures.get(name, (Epoch(0), ""))
        if failed_epoch == epoch:
            raise RemoteError(f"agent {name!r} cannot load its part: {reason}")
        return agent.state == AgentState.READY and agent.epoch == epoch

    def _raise_fault(self) -> None:
        if self._fault:
            raise RemoteError(f"{self._fault}; start the coordinator again")
