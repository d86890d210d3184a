"""The plans of a long-lived coordinator: the supervisor's decisions carried out.

Plans are installed while nobody is served, and moved to while a text is written; a text whose
board was lost waits here for another one. The serving thread alone uses this (`service`).
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from agent.ids import AgentName, Epoch
from coordinator.admin_messages import Notice
from coordinator.advisor import Advisor
from coordinator.cluster import Cluster
from coordinator.desk import Desk, at_work
from coordinator.forecast import short_agents
from coordinator.inbox import Inbox
from coordinator.membership import Agent, AgentState
from coordinator.migration_events import Outcome
from coordinator.patience import Patience
from coordinator.plan import Plan
from coordinator.planner.decision import Replan
from coordinator.promise import Promise
from coordinator.report import placement_table
from coordinator.status import missing_text
from coordinator.supervisor import (
    Advised,
    AgentsHere,
    Drain,
    DropPlan,
    Event,
    Install,
    Installed,
    InstallFailed,
    Interrupted,
    Move,
    RequestBegan,
    Seen,
    Supervisor,
    TextStopped,
    Unfit,
    Wait,
)
from coordinator.texts import UnwantedError
from coordinator.wishes import heed
from kernels.errors import (
    AgentLostError,
    FaultyAgentError,
    HeadwiseError,
    LateAgentsError,
    PlanError,
    RemoteError,
    ResourceError,
)

__all__ = ["Keeper"]

log = logging.getLogger(__name__)

# How soon agents that come, go or slow down are noticed while a text is written.
LOOK_S = 0.1
# How often a text that stopped looks for another plan.
RECOVER_LOOK_S = 0.02


class Keeper:
    """Keeps a plan in force on a cluster whose agents come, go and change.

    Args:
        cluster: bound, without a plan.
        supervisor: decides.
        desk: where clients see what has been published.
        inbox: has those who wait for a plan.
        absent: returns who is not used, and why.

    Attributes:
        due_s: when to look again, though nothing happens.
        interruptible: whether weights are being loaded, which a signal may cut short.
    """

    def __init__(
        self,
        cluster: Cluster,
        supervisor: Supervisor,
        desk: Desk,
        inbox: Inbox,
        absent: Callable[[], dict[AgentName, str]],
    ) -> None:
        self._cluster = cluster
        self._supervisor = supervisor
        self._desk = desk
        self._inbox = inbox
        self._absent = absent
        self._advisor = Advisor(cluster.directory.geometry)
        self._advice: Replan | None = None
        # The plan that a migration leads away from.
        self._former: Plan | None = None
        self._promise = Promise()
        self._look_s = 0.0
        self._short = ""
        self._impossible = False
        self.due_s = 0.0
        self.interruptible = False

    # What happens.

    def look(self) -> None:
        """Tell the supervisor what clients wish and who is here."""
        self._cluster.drain()
        self._look_at_move()
        for wish in self._inbox.wishes():
            heed(wish, self._cluster.moves, self.happen)
        here = self._look_at_agents()
        self._look_at_memory(here)

    def look_between_tokens(self, token_s: float) -> None:
        """See who has come, what clients wish, how far a migration is, and what would be better.

        Args:
            token_s: what the last token took.
        """
        now_s, is_moving = time.monotonic(), self._cluster.moves.is_moving
        judgement = None if is_moving else self._promise.token(self._cluster.epoch, token_s)
        if judgement:
            log.info("replan judged %s", judgement)
            self._advisor.judged(judgement, now_s)
        wishes = self._inbox.wishes()
        if not wishes and now_s < self._look_s and not is_moving:
            return
        self._look_s = now_s + LOOK_S
        self._look_at_move()
        for wish in wishes:
            heed(wish, self._cluster.moves, self.happen)
        here = self._look_at_agents()
        self._look_at_memory(here, writing=True)
        self._advise(here, now_s)
        self._desk.view = replace(self._desk.view, state="writing")

    def happen(self, event: Event) -> None:
        """Let the supervisor decide about an event, and carry its decisions out."""
        events = [event]
        for event in events:
            for action in self._supervisor.on_event(event, time.monotonic()):
                match action:
                    case DropPlan(reason):
                        log.warning("plan dropped epoch=%d: %s", self._cluster.epoch, reason)
                        # What boards that are left have of the text being written may be of use.
                        self._cluster.drop_plan(end_texts=False, keep_rows=True)
                    case Install(names):
                        events.append(self._install(names))
                    case Move(names):
                        events += self._move(names)
                    case Wait(until_s):
                        self.due_s = float("inf") if until_s is None else until_s
        self.publish("ready" if self._supervisor.in_force else "waiting")

    def publish(self, state: str) -> None:
        """Let clients see how things stand."""
        cluster, supervisor = self._cluster, self._supervisor
        plan, move = cluster.plan if supervisor.in_force else None, cluster.moves.move
        self._desk.view = replace(
            self._desk.view,
            state=state,
            epoch=cluster.epoch if plan else Epoch(0),
            plan=plan,
            holders=at_work(plan, move),
            drained=supervisor.drained,
            cordoned=supervisor.cordoned,
            set_aside=supervisor.set_aside,
            problem=supervisor.problem,
            move=move.view() if move else None,
            mirror=cluster.mirrors.view(),
        )

    def _look_at_agents(self) -> list[Agent]:
        """Tell the supervisor who is here, and return them."""
        here = [agent for agent in self._cluster.control.agents() if agent.alive]
        ready = AgentState.READY
        self.happen(
            AgentsHere(tuple(Seen(a.name, a.epoch if a.state is ready else Epoch(0)) for a in here))
        )
        return here

    # Memory.

    def _look_at_memory(self, here: Sequence[Agent], writing: bool = False) -> None:
        """See to it that no agent runs out of memory, by another plan."""
        cluster, plan, move = self._cluster, self._cluster.plan, self._cluster.moves.move
        if plan is None or not self._supervisor.in_force:
            return
        members = {member.agent for member in plan.members}
        # Whoever is moved off may be short until that is done, as long as there is time for it.
        short = short_agents(here, members if move is None else move.targets)
        critical = [f for f in short_agents(here, members) if f.is_critical]
        if not short and not critical:
            return
        why = str((critical or short)[0])
        log.warning("plan must change epoch=%d: %s", cluster.epoch, why)
        if move is not None:
            # There was room for a second KV pool when it began.
            self._give_up_on(RemoteError(why))
            if not critical:
                return
        if not writing:
            self.happen(Unfit(why))
        elif critical or not self._moves_off():
            self.happen(Unfit(why))
            # The text finds that its plan is gone, and waits for another one; see `recover`.
            self._short = why
            cluster.drop_plan(end_texts=False)

    def _moves_off(self) -> bool:
        """Move to a plan that leaves all agents enough; False if there is none to move to."""
        if self._cluster.installer.place == "spread":
            self.happen(Advised())
        else:
            self._take_advice()
        return self._cluster.moves.is_moving

    # Plans.

    def _install(self, names: tuple[AgentName, ...]) -> Installed | InstallFailed:
        """Plan with these agents and put the plan into force."""
        cluster, before = self._cluster, self._cluster.plan
        try:
            plan = cluster.make_plan(names)
            # A newcomer that would not help changes nothing.
            if plan != before:
                self._load(plan, frozenset(member.agent for member in plan.members))
        except UnwantedError:
            # No plan has failed; how the text ended is told next, and decides what comes.
            cluster.drop_plan(end_texts=False)
            self.happen(Interrupted())
            raise
        except HeadwiseError as e:
            kept = before is not None and cluster.plan is before
            late = e.agents if isinstance(e, LateAgentsError) else ()
            culprits = cluster.control.failed(cluster.epoch) | frozenset(map(AgentName, late))
            log.warning("no new plan epoch=%d: %s", cluster.epoch, e)
            if not kept:
                cluster.drop_plan(end_texts=False)
            # Not if somebody left while the plan was made: the next one is made without.
            all_here = set(names) <= set(cluster.agent_names())
            self._impossible = all_here and isinstance(e, ResourceError | PlanError)
            return InstallFailed(str(e), culprits, kept)
        except Exception as e:
            log.exception("planning failed")
            cluster.drop_plan(end_texts=False)
            return InstallFailed(f"internal error: {type(e).__name__}; the log says more")
        return self._installed()

    def _load(self, plan: Plan, members: frozenset[AgentName]) -> None:
        cluster = self._cluster
        self._desk.view = replace(self._desk.view, state="loading", plan=None, holders=members)
        names = ", ".join(sorted(members))
        for request in self._inbox.waiting():
            request.notice(Notice(f"weights are being loaded by {names}"))
        log.info("loading epoch=%d agents=%s", cluster.epoch + 1, names.replace(" ", ""))
        self.interruptible = True
        try:
            cluster.install(plan, end_texts=False)
        finally:
            self.interruptible = False
        log.info("plan in force epoch=%d agents=%s", cluster.epoch, names.replace(" ", ""))

    def _installed(self) -> Installed:
        cluster = self._cluster
        assert cluster.plan is not None
        self._short = ""
        self._desk.view = replace(self._desk.view, placement=placement_table(cluster))
        return Installed(cluster.epoch, frozenset(m.agent for m in cluster.plan.members))

    # Moves.

    def _advise(self, here: Sequence[Agent], now_s: float) -> None:
        """Look for a plan that is worth moving to, when boards have become faster or slower."""
        cluster, supervisor = self._cluster, self._supervisor
        self._advisor.look(here, now_s, cluster.moves.is_moving)
        if cluster.moves.is_moving or not supervisor.in_force:
            return  # what has changed meanwhile is looked at afterwards
        # With "spread" somebody wants to see everybody at work, whether that pays or not.
        if cluster.installer.place != "spread" and self._advisor.is_due(now_s):
            self._take_advice()

    def _take_advice(self) -> None:
        """Ask the planner, and move if it knows of something better; a text needs no advice."""
        cluster, supervisor = self._cluster, self._supervisor
        try:
            advice = cluster.replan(self._advisor, supervisor.usable, supervisor.cordoned)
        except Exception as e:
            unforeseen = not isinstance(e, HeadwiseError)
            log.warning("no advice epoch=%d: %s", cluster.epoch, e, exc_info=unforeseen)
            return
        if advice.moves:
            self._advice = advice
            self.happen(Advised())
            self._advice = None

    def _move(self, names: tuple[AgentName, ...]) -> list[Event]:
        """Begin to move to a plan of these agents; what came of it, if known."""
        cluster = self._cluster
        try:
            plan, why = self._better_plan(names)
            if plan == cluster.plan:
                return [self._installed()]
            self._former = cluster.plan
            cluster.begin_move(plan)
        except HeadwiseError as e:
            log.warning("no move epoch=%d: %s", cluster.epoch, e)
            return [InstallFailed(str(e), cluster.control.failed(cluster.epoch), kept=True)]
        except Exception as e:
            log.exception("no move")
            return [InstallFailed(f"internal error: {type(e).__name__}", kept=True)]
        log.info("replan epoch=%d %s %s", cluster.epoch, why, self._advisor.reckoned())
        return []

    def _better_plan(self, names: tuple[AgentName, ...]) -> tuple[Plan, str]:
        cluster = self._cluster
        if cluster.installer.place == "spread":
            return cluster.make_plan(names), "reason=spread"
        cordoned = self._supervisor.cordoned
        advice = self._advice or cluster.replan(self._advisor, names, cordoned)
        self._promise.make(advice.after.total_s)
        return advice.plan, advice.line()

    def _look_at_move(self) -> None:
        """Let a migration go on, and tell what came of it."""
        ended = self._cluster.poll_move()
        if ended is None:
            return
        if ended.outcome is Outcome.MOVED:
            if self._former is not None and self._cluster.plan is not None:
                self._advisor.moved(self._former, self._cluster.plan, time.monotonic())
            self._promise.in_force(self._cluster.epoch)
            self.happen(self._installed())
            return
        self._promise.forget()
        culprits = frozenset({ended.culprit} if ended.culprit else ())
        kept = ended.outcome is Outcome.ABORTED
        self.happen(InstallFailed(ended.reason, culprits, kept))

    # Losses.

    def recover(
        self, why: RemoteError, check: Callable[[], None], tell: Callable[[str], None]
    ) -> None:
        """Find another plan for the text being written; called by it, in the middle of a step.

        Args:
            why: what made the plan in force useless.
            check: called while it waits; may raise to end the text.
            tell: called with what the text's reader should know.

        Raises:
            RemoteError: who is left cannot hold the model; the text ends.
        """
        started_s = time.monotonic()
        patience = Patience(started_s)
        short, self._short = self._short, ""
        if short and isinstance(why, AgentLostError) and not why.agent:
            why = RemoteError(short)  # all that it met with is that its plan was dropped
        log.warning("text stopped epoch=%d: %s", self._cluster.epoch, why)
        self._give_up_on(why)
        self._impossible = False
        self._look_at_agents()
        self.happen(TextStopped(str(why)))
        while not self._supervisor.in_force:
            check()
            self._raise_if_over(why, patience)
            self.look()
            if not self._supervisor.in_force:
                self._inbox.wait(RECOVER_LOOK_S, for_requests=False)
        self.happen(RequestBegan())
        self._desk.view = replace(self._desk.view, state="writing")
        tell(f"{why}; the text goes on without it")
        took_s = time.monotonic() - started_s
        log.info("text goes on epoch=%d seconds=%.2f", self._cluster.epoch, took_s)

    def _give_up_on(self, why: RemoteError) -> None:
        """End a migration that is under way, and use the agent that is to blame no more."""
        if self._cluster.moves.abandon(str(why)):
            self.happen(InstallFailed(str(why), kept=True))
        else:
            # One that has ended already is told of as what it came to.
            self._look_at_move()
        if isinstance(why, FaultyAgentError):
            log.error("agent=%s is drained: its numbers cannot be right", why.agent)
            self.happen(Drain(AgentName(why.agent)))
        elif isinstance(why, AgentLostError) and why.agent:
            # It may be here still, and only its hot link is not.
            self._cluster.control.lose(AgentName(why.agent), str(why))

    def _raise_if_over(self, why: RemoteError, patience: Patience) -> None:
        nobody = not self._supervisor.usable
        if patience.is_over(nobody or self._impossible, time.monotonic()):
            problem = self._supervisor.problem or "no other plan was made in time"
            if nobody:
                problem = f"waiting for {missing_text(1, (), self._absent())}"
            raise RemoteError(f"{why}; without it: {problem}")
