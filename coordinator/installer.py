"""The plan in force and how it gets there: made, told to its members, an engine set up for it.

One thread uses an Installer, the one that owns the hot link. Does not know texts.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from agent.bulk import BulkServer
from agent.frames import Phase
from agent.ids import AgentName, Epoch, ModelId, Rank, RunId
from agent.share import KvFormat, indices
from coordinator.assign import assignments, largest_reply_bytes
from coordinator.control import Control
from coordinator.engine import Engine
from coordinator.hot_link import HotLink, HotPeer
from coordinator.plan import Plan, check_model, check_plan, member_weights_bytes
from coordinator.planner import Link, Place, Planned, PlanRequest, make_plan
from coordinator.transfer import grant_pulls
from kernels.errors import PlanError
from weights.bounds import attention_bound, mlp_bound
from weights.directory import ModelDirectory
from weights.sections import AtomKind

__all__ = ["Installer"]

MAX_ROWS = 64
# Contexts open at once; their tokens share kv_tokens, each may leave one page partly empty.
N_CONTEXTS = 4
# Loopback round trips as measured by tools/bench_exchange.py; real links are issue 5's matter.
LOOPBACK = Link(hop_s=150e-6, bytes_per_s=1e9)
LOAD_STALL_S = 120.0
# From READY to a frame on the hot channel.
JOIN_S = 10.0


class Installer:
    """Makes plans and puts one at a time into force.

    Args:
        directory: the model.
        control: the register of agents.
        hot: the hot link.
        bulk: serves weights to whom they are granted.
        run_id: number of this run.
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
        hot: HotLink,
        bulk: BulkServer,
        run_id: RunId,
        *,
        context_tokens: int,
        wire: KvFormat,
        kv: KvFormat,
        place: Place,
        alike: bool,
    ) -> None:
        self._directory = directory
        self._control = control
        self._hot = hot
        self._bulk = bulk
        self._run_id = run_id
        self._alike = alike
        self._request = PlanRequest(
            context_tokens=context_tokens,
            kv_tokens=context_tokens,
            wire=wire,
            kv=kv,
            place=place,
            n_contexts=N_CONTEXTS,
        )
        self._engine: Engine | None = None
        self.epoch = Epoch(0)
        self.plan: Plan | None = None
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
    def is_busy(self) -> bool:
        """Whether a request runs; from any thread."""
        engine = self._engine
        return engine is not None and engine.is_busy

    def make_plan(self, names: Sequence[AgentName] | None = None) -> Plan:
        """Let the planner place the model on the agents that are here, or on some of them.

        Raises:
            ResourceError: the model does not fit; says how many bytes are missing and where.
        """
        offers = self._control.offers()
        if self._alike:
            speed = statistics.median(o.bytes_per_s for o in offers)
            offers = [o._replace(bytes_per_s=speed) for o in offers]
        chosen = [o for o in offers if names is None or o.name in names]
        model_id = ModelId(self._directory.model_id)
        geometry = self._directory.geometry
        self.planned = make_plan(model_id, geometry, chosen, self._request, LOOPBACK)
        return self.planned.plan

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
        geometry = self._directory.geometry
        check_plan(plan, geometry)
        self._check_members(plan)
        before()
        previous = self.epoch
        self.drop()
        self.epoch = Epoch(previous + 1)
        told = assignments(
            plan,
            self._run_id,
            self.epoch,
            manifest_bytes=len(self._directory.manifest.encode()),
            context_tokens=self._request.context_tokens,
            kv_tokens=self._request.kv_tokens,
            n_contexts=N_CONTEXTS,
            max_rows=MAX_ROWS,
        )
        self.plan = plan
        links = self._control.link_secrets(list(told))
        grant_pulls(self._bulk, links, told, self._directory.manifest)
        reply_bytes = largest_reply_bytes(plan, geometry, MAX_ROWS)
        peers = [HotPeer(link.hot_route, link.key) for link in links]
        self._hot.expect(list(told), peers, self.epoch, reply_bytes)
        self._control.assign(told)
        self._control.wait_ready(
            self.epoch, self.weights_bytes(), LOAD_STALL_S, self._hot.take_hellos
        )
        self._hot.join(time.monotonic() + JOIN_S)
        self._engine = Engine(
            self._hot, plan, geometry, self._run_id, self.epoch, MAX_ROWS, self._bound
        )

    def drop(self) -> None:
        """Let every member free what it holds of the plan in force, if there is one."""
        self._engine = self.plan = None
        self._bulk.end_grants()
        if self.epoch:
            self._control.release(self.epoch)

    def _bound(self, rank: Rank, phase: Phase, layer: int) -> float:
        """Return the largest magnitude of a partial sum that a member's weights allow."""
        assert self.plan is not None
        share = next(s for s in self.plan.members[rank].layers if s.layer == layer)
        geometry, norms = self._directory.geometry, self._blobs("layer_norms", layer, [0])[0]
        if phase is Phase.ATTENTION:
            groups = self._blobs("head_group", layer, indices(share.head_groups))
            return attention_bound(geometry, norms, groups)
        columns = self._blobs("column", layer, indices(share.columns))
        return mlp_bound(geometry, norms, columns)

    def _blobs(
        self, kind: AtomKind, layer: int, atoms: Iterable[int]
    ) -> list[npt.NDArray[np.uint8]]:
        """Return some atoms of a layer, sound; ModelError."""
        found = [self._directory.manifest.atom(kind, layer, index) for index in atoms]
        self._directory.verify_atoms(found)
        return [self._directory.atom_bytes(atom) for atom in found]

    def lost_reason(self, rank: Rank) -> str:
        """Return why the member of that rank is gone, or ""."""
        return self._control.lost_reason(self.plan.members[rank].agent) if self.plan else ""

    def weights_bytes(self) -> dict[AgentName, int]:
        """Return the bytes of weights that each member of the plan in force holds."""
        if self.plan is None:
            return {}
        geometry = self._directory.geometry
        return {
            member.agent: member_weights_bytes(member, stage, geometry)
            for stage in self.plan.stages
            for member in stage.members
        }

    def _check_members(self, plan: Plan) -> None:
        check_model(plan, self._directory.model_id)
        here = {offer.name for offer in self._control.offers()}
        missing = [m.agent for m in plan.members if m.agent not in here]
        if missing:
            raise PlanError(
                f"plan names agent {missing[0]!r}, which is not here; here are: "
                f"{', '.join(sorted(here)) or 'none'}"
            )
