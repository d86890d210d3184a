"""What a long-lived coordinator does all day: one thread that plans and writes, text after text.

`run` is the serving thread: it alone touches the plan, the hot link and the texts. Clients' threads
reach it through the inbox and see what it has published at the desk. When to plan is
`supervisor`'s decision.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from agent.ids import AgentName
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
from coordinator.keeper import Keeper
from coordinator.logs import about
from coordinator.results import Result
from coordinator.status import missing_text
from coordinator.supervisor import (
    RequestBegan,
    RequestEnded,
    Supervisor,
)
from coordinator.texts import UnwantedError
from kernels.errors import (
    AgentLostError,
    FaultyAgentError,
    HeadwiseError,
)

__all__ = ["Service"]

log = logging.getLogger(__name__)

# How often to look round while somebody waits for a plan or for heads that move, and when nobody
# does: who comes, goes or asks for something wakes the serving thread.
LOOK_S = 0.2
IDLE_LOOK_S = 1.0
ENDING = "the coordinator has been stopped; start the request again once it is back"


class _GivenUpError(UnwantedError):
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
        self._keeper = Keeper(cluster, self._supervisor, self._desk, self._inbox, self._absent)
        self._ending = False
        self._writing: Request | None = None
        # A long prompt takes minutes; a client that leaves and `stop` shall not wait for it.
        cluster.interrupt = self._check
        cluster.control.on_news = self._inbox.nudge
        cluster.recover = lambda why: self._keeper.recover(why, self._check, self._tell)

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
        self._inbox.nudge()
        if self._keeper.interruptible:
            self._keeper.interruptible = False
            raise KeyboardInterrupt

    def run(self) -> None:
        """Serve until `stop`; then fail whoever waits."""
        try:
            while not self._ending:
                self._keeper.look()
                in_force = self._supervisor.in_force
                request = self._inbox.take() if in_force else None
                if request is not None:
                    self._serve(request)
                    continue
                if not in_force:
                    self._tell_why()
                self._inbox.wait(self._pause_s(), for_requests=in_force)
        except KeyboardInterrupt:
            log.info("ending while weights were being loaded")
        finally:
            self._inbox.close(ENDING)
            self._keeper.publish("ending")

    def _pause_s(self) -> float:
        """Return how long there is nothing to do, unless something happens."""
        is_awaited = self._cluster.moves.is_moving or self._inbox.waiting()
        look_s = LOOK_S if is_awaited else IDLE_LOOK_S
        return min(look_s, max(0.0, self._keeper.due_s - time.monotonic()))

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
        """Return who is known but cannot be given work, and why."""
        supervisor = self._supervisor
        absent = {name: "is not here" for name in self._known_names()}
        absent |= dict.fromkeys(supervisor.cordoned, "is cordoned")
        absent |= dict.fromkeys(supervisor.drained, "is drained")
        absent |= dict.fromkeys(supervisor.set_aside, "failed before")
        return {name: why for name, why in absent.items() if name not in supervisor.usable}

    def _serve(self, request: Request) -> None:
        """Write one text; whatever goes wrong with it ends this request alone."""
        lost, failure = "", ""
        self._keeper.happen(RequestBegan())
        self._desk.view = replace(self._desk.view, state="writing")
        with about(request=request.number):
            try:
                result = self._write(request)
                log.info("request ended epoch=%d n_tokens=%d finish=%s", self._cluster.epoch,
                         len(result.token_ids), result.finish_reason)  # fmt: skip
            except HeadwiseError as e:
                failure = str(e)
                # Either way the plan in force cannot be served any more.
                lost = failure if isinstance(e, AgentLostError | FaultyAgentError) else ""
                log.warning("request failed epoch=%d: %s", self._cluster.epoch, failure)
            except KeyboardInterrupt:
                # It waited for weights, see `stop`.
                request.say(Failed(ENDING))
                raise
            except Exception as e:
                log.exception("request failed")
                failure = f"internal error: {type(e).__name__}; the coordinator's log says more"
        if failure:
            request.say(Failed(failure))
        view = self._desk.view
        n_failed = view.n_failed + bool(failure)
        self._desk.view = replace(view, n_served=view.n_served + (not failure), n_failed=n_failed)
        self._keeper.happen(RequestEnded(lost))

    def _write(self, request: Request) -> Result:
        ask, cluster = request.ask, self._cluster
        log.info("request began epoch=%d max_tokens=%d", cluster.epoch, ask.max_tokens)
        generation = cluster.generate(
            ask.prompt,
            prompt_ids=ask.prompt_ids,
            max_tokens=ask.max_tokens,
            options=ask.options,
            stop=ask.stop,
        )
        has_text = cluster.tokenizer is not None
        request.say(Began(request.number, has_text, self._desk.view.placement))
        self._writing, since_s, plan = request, time.perf_counter(), cluster.plan
        assert plan is not None, "there is one, or no text would have begun"
        try:
            for token in generation:
                plan = cluster.plan or plan
                request.say(Piece(token.id, token.text))
                self._check()
                now_s = time.perf_counter()
                self._keeper.look_between_tokens(now_s - since_s)
                since_s = now_s
        except _GivenUpError as e:
            log.info("given up: %s", e)
        finally:
            self._writing = None
            generation.close()
        result = generation.result()
        # None may be in force any more: a text can end while a board is lost, or given up then.
        request.say(Finished(request.number, result, plan))
        return result

    def _tell(self, text: str) -> None:
        """Tell the reader of the text being written how it fares."""
        if self._writing is not None:
            self._writing.notice(Notice(text))

    def _check(self) -> None:
        """End the text being written if the coordinator ends or nobody waits for the text."""
        if self._writing is None:
            return
        if self._ending:
            raise UnwantedError(ENDING)
        if self._writing.given_up:
            raise _GivenUpError(self._writing.given_up)
