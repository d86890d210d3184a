"""What a long-lived coordinator does all day: one thread that plans and writes, text after text.

`run` is the serving thread: it alone touches the plan, the hot link and the texts. Clients' threads
reach it through the inbox and see what it has published at the desk. When to plan is
`supervisor`'s decision.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from agent.ids import AgentName, Epoch
from coordinator.admin_messages import (
    Began,
    Failed,
    Finished,
    Notice,
    Piece,
)
from coordinator.cluster import Cluster
from coordinator.desk import Desk
from coordinator.inbox import Inbox, Request
from coordinator.logs import about
from coordinator.membership import AgentState
from coordinator.plan import Plan
from coordinator.report import placement_table
from coordinator.results import Result
from coordinator.status import missing_text
from coordinator.supervisor import (
    AgentsHere,
    Drain,
    DropPlan,
    Event,
    Install,
    Installed,
    InstallFailed,
    RequestBegan,
    RequestEnded,
    Seen,
    Supervisor,
    Wait,
)
from kernels.errors import (
    AgentLostError,
    FaultyAgentError,
    HeadwiseError,
    LateAgentsError,
    RemoteError,
)

__all__ = ["Service"]

log = logging.getLogger(__name__)

# How soon agents that come or go are noticed between requests.
LOOK_S = 0.2
ENDING = "the coordinator has been stopped; start the request again once it is back"


class _GivenUpError(RemoteError):
    """Nobody waits for the text that is being written."""


class Service:
    """Serves requests on a cluster whose agents come and go.

    Args:
        cluster: bound, without a plan.
        min_agents: how many agents a plan is made with at least.
        known_names: names that have a key, whether here or not.
        ask_stop: what a client's wish to end the coordinator does; it shall lead to `stop`.
    """

    def __init__(
        self,
        cluster: Cluster,
        min_agents: int,
        known_names: Callable[[], list[AgentName]],
        ask_stop: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._known_names = known_names
        self._supervisor = Supervisor(min_agents)
        self._inbox = Inbox()
        self._desk = Desk(cluster, self._inbox, min_agents, known_names, ask_stop)
        self._due_s = 0.0
        self._ending = False
        self._may_interrupt = False
        self._writing: Request | None = None
        # A long prompt takes minutes; a client that leaves and `stop` shall not wait for it.
        cluster.interrupt = self._check

    @property
    def desk(self) -> Desk:
        """Where clients are answered."""
        return self._desk

    def stop(self) -> None:
        """Begin to end: the text being written fails, requests in line too; for signal handlers.

        Raises:
            KeyboardInterrupt: weights are being loaded; that may take minutes, so it unwinds.
        """
        self._ending = True
        if self._may_interrupt:
            self._may_interrupt = False
            raise KeyboardInterrupt

    def run(self) -> None:
        """Serve until `stop`; then fail whoever waits."""
        try:
            while not self._ending:
                self._look()
                in_force = self._supervisor.in_force
                request = self._inbox.take() if in_force else None
                if request is not None:
                    self._serve(request)
                    continue
                if not in_force:
                    self._tell_why()
                left_s = min(LOOK_S, max(0.0, self._due_s - time.monotonic()))
                self._inbox.wait(left_s, for_requests=in_force)
        except KeyboardInterrupt:
            log.info("ending while weights were being loaded")
        finally:
            self._inbox.close(ENDING)
            self._publish("ending")

    def _look(self) -> None:
        """Tell the supervisor what clients wish and who is here."""
        self._cluster.drain()
        for wish in self._inbox.wishes():
            self._happen(wish)
        here = [agent for agent in self._cluster.control.agents() if agent.alive]
        ready = AgentState.READY
        self._happen(
            AgentsHere(tuple(Seen(a.name, a.epoch if a.state is ready else Epoch(0)) for a in here))
        )

    def _happen(self, event: Event) -> None:
        """Let the supervisor decide about an event, and carry its decisions out."""
        events = [event]
        for event in events:
            for action in self._supervisor.on_event(event, time.monotonic()):
                match action:
                    case DropPlan(reason):
                        log.warning("plan dropped epoch=%d: %s", self._cluster.epoch, reason)
                        self._cluster.drop_plan()
                    case Install(names):
                        events.append(self._install(names))
                    case Wait(until_s):
                        self._due_s = float("inf") if until_s is None else until_s
        self._publish("ready" if self._supervisor.in_force else "waiting")

    def _install(self, names: tuple[AgentName, ...]) -> Installed | InstallFailed:
        """Plan with these agents and put the plan into force."""
        cluster, before = self._cluster, self._cluster.plan
        try:
            plan = cluster.make_plan(names)
            members = frozenset(member.agent for member in plan.members)
            # A newcomer that would not help changes nothing.
            if plan != before:
                self._load(plan, members)
        except HeadwiseError as e:
            kept = before is not None and cluster.plan is before
            late = e.agents if isinstance(e, LateAgentsError) else ()
            culprits = cluster.control.failed(cluster.epoch) | frozenset(map(AgentName, late))
            log.warning("no new plan epoch=%d: %s", cluster.epoch, e)
            if not kept:
                cluster.drop_plan()
            return InstallFailed(str(e), culprits, kept)
        except Exception as e:
            log.exception("planning failed")
            cluster.drop_plan()
            return InstallFailed(f"internal error: {type(e).__name__}; the log says more")
        self._desk.view = replace(self._desk.view, placement=placement_table(cluster))
        return Installed(cluster.epoch, members)

    def _load(self, plan: Plan, members: frozenset[AgentName]) -> None:
        cluster = self._cluster
        self._desk.view = replace(self._desk.view, state="loading", plan=None, holders=members)
        names = ", ".join(sorted(members))
        for request in self._inbox.waiting():
            request.notice(Notice(f"weights are being loaded by {names}"))
        log.info("loading epoch=%d agents=%s", cluster.epoch + 1, names.replace(" ", ""))
        self._may_interrupt = not self._ending
        try:
            cluster.install(plan)
        finally:
            self._may_interrupt = False
        log.info("plan in force epoch=%d agents=%s", cluster.epoch, names.replace(" ", ""))

    def _publish(self, state: str) -> None:
        cluster, supervisor = self._cluster, self._supervisor
        plan = cluster.plan if supervisor.in_force else None
        self._desk.view = replace(
            self._desk.view,
            state=state,
            epoch=cluster.epoch if plan else Epoch(0),
            plan=plan,
            holders=frozenset(m.agent for m in plan.members) if plan else frozenset(),
            drained=supervisor.drained,
            set_aside=supervisor.set_aside,
            problem=supervisor.problem,
        )

    def _tell_why(self) -> None:
        """Tell those in line why nothing comes, and those who have waited long enough that."""
        now_s, n_missing = time.monotonic(), self._supervisor.n_missing
        usable = self._supervisor.usable
        waiting = self._inbox.waiting()
        if not waiting:
            return
        missing = missing_text(n_missing, usable, self._absent()) if n_missing else ""
        problem = self._supervisor.problem
        why = missing or problem or "a plan"
        for request in waiting:
            if missing or problem:
                request.notice(Notice(f"waiting for {missing}" if missing else problem))
            if request.since_s is None:
                request.since_s = now_s
            wait_s = request.ask.wait_s
            # Written so that NaN ends the wait.
            if not now_s - request.since_s < wait_s:
                text = f"gave up after {wait_s:g} s of waiting for {why}"
                if missing:
                    text += f"; {self._cluster.control.how_to_join}"
                request.say(Failed(text))
                self._inbox.withdraw(request)

    def _absent(self) -> dict[AgentName, str]:
        """Return who has a key, or was drained or set aside, but is not used, and why."""
        supervisor = self._supervisor
        absent = {name: "is not here" for name in self._known_names()}
        absent |= dict.fromkeys(supervisor.drained, "is drained")
        absent |= dict.fromkeys(supervisor.set_aside, "failed before")
        return {name: why for name, why in absent.items() if name not in supervisor.usable}

    def _serve(self, request: Request) -> None:
        """Write one text; whatever goes wrong with it ends this request alone."""
        lost, failure, faulty = "", "", ""
        self._happen(RequestBegan())
        self._desk.view = replace(self._desk.view, state="writing")
        with about(request=request.number, epoch=self._cluster.epoch):
            try:
                result = self._write(request)
                log.info("request ended n_tokens=%d finish=%s", len(result.token_ids),
                         result.finish_reason)  # fmt: skip
            except HeadwiseError as e:
                failure = str(e)
                # Either way the plan in force cannot be served any more.
                lost = failure if isinstance(e, AgentLostError | FaultyAgentError) else ""
                faulty = e.agent if isinstance(e, FaultyAgentError) else ""
                log.warning("request failed: %s", failure)
            except Exception as e:
                log.exception("request failed")
                failure = f"internal error: {type(e).__name__}; the coordinator's log says more"
        if failure:
            request.say(Failed(failure))
        view = self._desk.view
        n_failed = view.n_failed + bool(failure)
        self._desk.view = replace(view, n_served=view.n_served + (not failure), n_failed=n_failed)
        if faulty:
            log.error("agent=%s is drained: its numbers cannot be right", faulty)
            self._happen(Drain(AgentName(faulty)))
        self._happen(RequestEnded(lost))

    def _write(self, request: Request) -> Result:
        ask, cluster = request.ask, self._cluster
        log.info("request began max_tokens=%d", ask.max_tokens)
        generation = cluster.generate(
            ask.prompt,
            prompt_ids=ask.prompt_ids,
            max_tokens=ask.max_tokens,
            options=ask.options,
            stop=ask.stop,
        )
        has_text = cluster.tokenizer is not None
        request.say(Began(request.number, has_text, self._desk.view.placement))
        self._writing = request
        try:
            for token in generation:
                request.say(Piece(token.id, token.text))
                self._check()
                for wish in self._inbox.wishes():
                    self._happen(wish)
                    self._desk.view = replace(self._desk.view, state="writing")
        except _GivenUpError as e:
            log.info("given up: %s", e)
        finally:
            self._writing = None
            generation.close()
        result = generation.result()
        assert cluster.plan is not None
        request.say(Finished(request.number, result, cluster.plan))
        return result

    def _check(self) -> None:
        """End the text being written if the coordinator ends or nobody waits for the text."""
        if self._writing is None:
            return
        if self._ending:
            raise RemoteError(ENDING)
        if self._writing.given_up:
            raise _GivenUpError(self._writing.given_up)
