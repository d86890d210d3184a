"""The plan in force and how it gets there: made, told to its members, an engine set up for it.

A plan takes the place of the former one at once (`install`), or by and by, while texts move from
one to the other (`prepare`, `put`; see `moves`). One thread uses an Installer, the one that owns
the hot socket.
"""

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import msgspec

from agent.bulk import BulkServer
from agent.ids import AgentName, Epoch, ModelId, RunId
from agent.share import Assignment, KvFormat, WireFormat
from coordinator.advisor import Advisor
from coordinator.assign import assignments, largest_reply_bytes
from coordinator.control import Control
from coordinator.engine import Engine
from coordinator.hot_link import HotLink, HotPeer
from coordinator.hot_socket import HotSocket
from coordinator.offers import LOOPBACK
from coordinator.overheads import Overheads
from coordinator.part_bounds import part_bound
from coordinator.plan import Plan, check_model, check_plan, plan_weights_bytes
from coordinator.planner.cost import atom_sizes, counts_of
from coordinator.planner.decision import Replan
from coordinator.planner.place import Costs, Offer, Place, Planned, PlanRequest, make_plan
from coordinator.planner.replan import replan
from coordinator.planner.room import check_room
from coordinator.planner.stay import staying
from coordinator.prepared import Prepared
from coordinator.transfer import grant_pulls
from kernels.errors import PlanError, ResourceError
from weights.directory import ModelDirectory

__all__ = ["Installer"]

MAX_ROWS = 64
# Contexts open at once; their tokens share kv_tokens, each may leave one page partly empty.
N_CONTEXTS = 4
LOAD_STALL_S = 120.0
# From READY to a frame on the hot channel.
JOIN_S = 10.0


class Installer:
    """Makes plans and puts one at a time into force.

    Args:
        directory: the model.
        control: the register of agents.
        hot: the hot socket.
        bulk: serves weights to whom they are granted.
        run_id: number of this run.
        lost_reason: see `HotSocket.expect`.
        context_tokens: longest context.
        wire: type of numbers on the wire.
        kv: type of cached keys and values.
        place: "spread" uses every agent, "auto" the fastest subset by prediction.
        alike: agents of one machine are equally fast; what they measured while starting side by
            side is noise, and would make the placement differ from run to run.

    Attributes:
        plan: the plan put into force last; None = none, or dropped.
        planned: what `make_plan` returned last, with its forecast.
        epoch: its number; grows with every plan.
    """

    def __init__(
        self,
        directory: ModelDirectory,
        control: Control,
        hot: HotSocket,
        bulk: BulkServer,
        run_id: RunId,
        lost_reason: Callable[[AgentName], str],
        *,
        context_tokens: int,
        wire: WireFormat,
        kv: KvFormat,
        place: Place,
        alike: bool,
    ) -> None:
        self._directory = directory
        self._control = control
        self._hot = hot
        self._link: HotLink | None = None
        self._bulk = bulk
        self._run_id = run_id
        self._lost_reason = lost_reason
        self._alike = alike
        self._request = PlanRequest(
            context_tokens=context_tokens,
            kv_tokens=context_tokens,
            wire=wire,
            kv=kv,
            place=place,
            n_contexts=N_CONTEXTS,
        )
        # `_coming`: of a prepared plan, to which texts may have moved already.
        self._engine: Engine | None = None
        self._coming: Engine | None = None
        self._overheads = Overheads()
        self.epoch = self._last_epoch = Epoch(0)
        self.plan: Plan | None = None
        # The one that was dropped last: its members still have their atoms at hand.
        self._former: Plan | None = None
        self.planned: Planned | None = None

    @property
    def engine(self) -> Engine:
        """What carries rows through the plan in force.

        Raises:
            PlanError: no plan is in force.
        """
        if self._engine is None:
            raise PlanError("no plan is in force; install one first")
        return self._engine

    @property
    def place(self) -> Place:
        """How the planner chooses agents."""
        return self._request.place

    @property
    def is_busy(self) -> bool:
        """Whether a request runs, in the plan in force or the one to come; from any thread."""
        engines = (self._engine, self._coming)
        return any(engine.is_busy for engine in engines if engine is not None)

    def make_plan(self, names: Sequence[AgentName] | None = None) -> Plan:
        """Let the planner place the model on the agents that are here, or on some of them.

        Atoms stay where they are or were, as far as each agent's share allows.

        Raises:
            ResourceError: the model does not fit; says how many bytes are missing and where.
        """
        try:
            return self._make_plan(names, self._control.offers())
        except ResourceError:
            # Rather tight than not at all.
            return self._make_plan(names, self._control.offers(to_the_last=True))

    def _make_plan(self, names: Sequence[AgentName] | None, offers: list[Offer]) -> Plan:
        if self._alike:
            speed = statistics.median(o.bytes_per_s for o in offers)
            offers = [o._replace(bytes_per_s=speed) for o in offers]
        chosen = [o for o in offers if names is None or o.name in names]
        model_id = ModelId(self._directory.model_id)
        geometry = self._directory.geometry
        planned = make_plan(model_id, geometry, chosen, self._request, LOOPBACK, self.costs())
        former = self.plan or self._former
        if former is not None:
            planned = replace(planned, plan=staying(planned.plan, former, geometry))
        self.planned = planned
        return planned.plan

    def replan(
        self,
        advisor: Advisor,
        n_tokens: int,
        names: Collection[AgentName],
        cordoned: Collection[AgentName] = (),
    ) -> Replan:
        """Let the planner look for a change of the plan in force that pays for its moves.

        Args:
            advisor: knows rates and what lasts.
            n_tokens: tokens cached at present, over all contexts.
            names: agents that may hold something; other members are freed.
            cordoned: agents that are given nothing, but may keep what they have.

        Raises:
            PlanError: no plan is in force.
            ResourceError: a member must be freed, and the others cannot hold the model.
        """
        plan = self.plan
        if plan is None:
            raise PlanError("no plan is in force; install one first")
        try:
            return self._replan(plan, advisor, n_tokens, names, cordoned, self._control.offers())
        except ResourceError:
            offers = self._control.offers(to_the_last=True)
            return self._replan(plan, advisor, n_tokens, names, cordoned, offers)

    def _replan(
        self,
        plan: Plan,
        advisor: Advisor,
        n_tokens: int,
        names: Collection[AgentName],
        cordoned: Collection[AgentName],
        offers: list[Offer],
    ) -> Replan:
        members = {member.agent for member in plan.members}
        here = [o for o in offers if o.name in names or o.name in members]
        offers = advisor.estimated(here)
        others = {o.name for o in offers if o.name not in names}
        kept = others.intersection(cordoned)
        now = advisor.conditions(plan, offers, n_tokens, others - kept, kept)
        geometry, costs = self._directory.geometry, self.costs()
        found = replan(plan, geometry, offers, self._request, LOOPBACK, now, costs)
        advisor.answered(offers)
        return found

    def costs(self) -> Costs:
        """Return the fixed costs that tokens have had so far."""
        costs = self._control.costs()
        if self.plan is not None and self._engine is not None:
            link = self._control.link([member.agent for member in self.plan.members])
            self._overheads.learn(self._engine.log, link, costs)
        return self._overheads.known(costs)

    def install(self, plan: Plan, before: Callable[[], None] = lambda: None) -> None:
        """Put a plan into force and wait until every member is ready.

        Args:
            plan: takes the place of the former one.
            before: called when the plan has passed its checks and the former one ends.

        Raises:
            PlanError: it does not fit the model or names agents that are not here; the former
                plan stays.
            RemoteError: a member cannot carry out its part, or is lost; none is in force then.
        """
        self.check(plan)
        before()
        self.drop()
        self.epoch = self.next_epoch()
        told = self._told(plan, self.epoch)
        self.plan = plan
        try:
            link = self._link = self._expect(plan, told, self.epoch)
            self._control.assign(told)
            weights_bytes = self.weights_bytes()
            self._control.wait_ready(self.epoch, weights_bytes, LOAD_STALL_S, link.take_hellos)
            link.join(time.monotonic() + JOIN_S)
            self._engine = self._make_engine(plan, link)
        except BaseException:
            # What its members have loaded is at hand for the next one; `drop` lets them free it.
            self._former, self.plan = plan, None
            raise

    def _told(self, plan: Plan, epoch: Epoch) -> dict[AgentName, Assignment]:
        return assignments(
            plan,
            self._run_id,
            epoch,
            manifest_bytes=len(self._directory.manifest.encode()),
            context_tokens=self._request.context_tokens,
            kv_tokens=self._request.kv_tokens,
            n_contexts=N_CONTEXTS,
            max_rows=MAX_ROWS,
        )

    def _expect(self, plan: Plan, told: Mapping[AgentName, Assignment], epoch: Epoch) -> HotLink:
        """Grant the members what they may pull and take their links for ours."""
        links = self._control.link_secrets(list(told))
        grant_pulls(self._bulk, links, told, self._directory.manifest)
        reply_bytes = largest_reply_bytes(plan, self._directory.geometry, MAX_ROWS)
        peers = [HotPeer(link.hot_route, link.key) for link in links]
        return self._hot.expect(list(told), peers, epoch, reply_bytes, self._lost_reason)

    def _make_engine(self, plan: Plan, link: HotLink) -> Engine:
        return Engine(
            link, plan, self._directory.geometry, self._run_id, link.epoch, MAX_ROWS,
            lambda rank, phase, layer: part_bound(self._directory, plan, rank, phase, layer),
        )  # fmt: skip

    # For a plan that comes by and by; see `moves`.

    def prepare(self, plan: Plan, kept: Collection[AgentName]) -> Prepared:
        """Number a plan and expect its members' links, while another plan is in force.

        Args:
            plan: the plan to come; checked here.
            kept: members whose KV pool serves both plans.

        Raises:
            PlanError: it does not fit the model or names agents that are not here.
            ResourceError: a member has no room for its parts of both plans.
            AgentLostError: a member is gone.
        """
        self.check(plan)
        if self.plan is not None:
            self.check_room(self.plan, plan, kept)
        epoch = self.next_epoch()
        told = self._told(plan, epoch)
        for name in kept:
            told[name] = msgspec.structs.replace(told[name], kv_of_epoch=self.epoch)
        link = self._expect(plan, told, epoch)

        def make_engine() -> Engine:
            self._coming = self._make_engine(plan, link)
            return self._coming

        return Prepared(plan, epoch, told, link, make_engine)

    def check_room(
        self,
        before: Plan,
        plan: Plan,
        kept: Collection[AgentName] = (),
        besides_bytes: Mapping[AgentName, int] = MappingProxyType({}),
    ) -> None:
        """Check that members have room for their parts of two plans.

        Args:
            before: the plan in force.
            plan: the plan to come.
            kept: members whose KV pool serves both.
            besides_bytes: what agents hold apart from plans.

        Raises:
            ResourceError: one has not; names it and the bytes.
        """
        new = {member.agent for member in plan.members}.difference(kept)
        here = [
            offer._replace(memory_bytes=offer.memory_bytes - besides_bytes.get(offer.name, 0))
            for offer in self._control.offers()
            if offer.name in new
        ]
        check_room(before, plan, self._directory.geometry, here, self._request)

    def put(self, prepared: Prepared, engine: Engine) -> None:
        """Put a prepared plan into force whose members are ready; the former one ends."""
        former = self.epoch
        if self._link is not None:
            self._link.end()
        self.plan, self.epoch = prepared.plan, prepared.epoch
        self._link, self._engine, self._coming = prepared.link, engine, None
        self._control.release(former)

    def withdraw(self, prepared: Prepared) -> None:
        """Let the members of a prepared plan free what they hold for it."""
        self._coming = None
        prepared.link.end()
        self._control.release(prepared.epoch)

    def next_epoch(self) -> Epoch:
        """Return a number that no plan and no mirror has had."""
        self._last_epoch = Epoch(self._last_epoch + 1)
        return self._last_epoch

    def drop(self) -> None:
        """Let every member free what it holds of the plan in force, if there is one."""
        self.suspend()
        if self.epoch:
            self._control.release(self.epoch)

    def suspend(self) -> None:
        """Put no plan into force; members keep what they hold until `put`, `drop` or `install`."""
        self._former = self.plan or self._former
        self._engine = self.plan = None
        if self._link is not None:
            self._link.end()
        self._bulk.end_grants()

    def pool_bytes(self, plan: Plan) -> dict[AgentName, int]:
        """Return the bytes of each member's KV pool under a plan."""
        sizes = atom_sizes(self._directory.geometry, self._request)
        pools = counts_of(plan, self._directory.geometry).pool_bytes(sizes)
        return {m.agent: int(n) for m, n in zip(plan.members, pools, strict=True)}

    def weights_bytes(self) -> dict[AgentName, int]:
        """Return the bytes of weights that each member of the plan in force holds."""
        return plan_weights_bytes(self.plan, self._directory.geometry) if self.plan else {}

    def exchange_s(self) -> dict[AgentName, float]:
        """Return how long a phase's frames are under way to each member, where it is known."""
        plan, engine = self.plan, self._engine
        if plan is None or engine is None:
            return {}
        found = zip(plan.members, engine.exchanges.seconds(), strict=False)
        return {member.agent: seconds for member, seconds in found if seconds is not None}

    def check(self, plan: Plan) -> None:
        """Raise PlanError if a plan does not fit the model or names agents that are not here."""
        check_plan(plan, self._directory.geometry)
        check_model(plan, self._directory.model_id)
        here = {offer.name for offer in self._control.offers()}
        missing = [m.agent for m in plan.members if m.agent not in here]
        if missing:
            raise PlanError(
                f"plan names agent {missing[0]!r}, which is not here; here are: "
                f"{', '.join(sorted(here)) or 'none'}"
            )
