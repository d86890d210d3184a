"""Chooses agents and places the model on them. Pure: plain data in, plain data out.

`subset` chooses the agents, `fill` shares the atoms out, `cost` predicts the time; this file
turns the result into a plan and says what it costs. Never moves anything: it says what would be
best now.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from agent.ids import AgentName, ModelId
from agent.share import AtomRange, LayerShare
from coordinator.plan import MAX_MEMBERS, Member, Plan, Stage
from coordinator.planner.cost import (
    DEFAULT_COSTS,
    Costs,
    Counts,
    Link,
    Offer,
    Place,
    PlanRequest,
    TokenTime,
    atom_sizes,
    counts_of,
    rates,
    slowest_link,
    token_time,
)
from coordinator.planner.subset import Alternative, Subsets
from kernels.errors import PlanError, ResourceError
from kernels.layout import Geometry

__all__ = [
    "Alternative",
    "Costs",
    "Link",
    "MemberForecast",
    "Offer",
    "Place",
    "PlanRequest",
    "Planned",
    "TokenTime",
    "assess",
    "make_plan",
]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MemberForecast:
    """Memory of one member once all admitted tokens are cached, in bytes."""

    agent: AgentName
    weights_bytes: int
    kv_pool_bytes: int
    budget_bytes: int

    @property
    def total_bytes(self) -> int:
        """Weights and KV pool together."""
        return self.weights_bytes + self.kv_pool_bytes


@dataclass(frozen=True)
class Planned:
    """A plan with what it is predicted to cost and what it beat.

    `considered` holds the best alternative of each number of agents, by rising number.
    """

    plan: Plan
    time: TokenTime
    members: tuple[MemberForecast, ...]
    considered: tuple[Alternative, ...] = ()

    @property
    def token_s(self) -> float:
        """Predicted seconds per decoded token."""
        return self.time.total_s


def make_plan(
    model_id: ModelId,
    geometry: Geometry,
    offers: Sequence[Offer],
    request: PlanRequest,
    link: Link,
    costs: Costs = DEFAULT_COSTS,
) -> Planned:
    """Place a model on the agents that offer themselves; ranks follow the order of offers.

    Raises:
        ResourceError: no agents, or the model does not fit: how many bytes are missing, and what
            each agent could hold.
    """
    names = [o.name for o in offers]
    if not offers or len(offers) > MAX_MEMBERS or len(set(names)) < len(names):
        raise ResourceError(
            f"{len(offers)} agents offer themselves; a plan needs 1 to {MAX_MEMBERS} of different "
            f"names: start agents with `headwise agent` or --local N"
        )
    subsets = Subsets(geometry, offers, request, link, costs)
    chosen = subsets.everyone() if request.place == "spread" else subsets.best()
    if chosen is None:
        raise ResourceError(subsets.shortage())
    plan = _plan(model_id, [names[j] for j in chosen.members], chosen.counts, request)
    planned = assess(plan, geometry, offers, request, link, costs)
    return replace(planned, considered=subsets.considered(chosen))


def assess(
    plan: Plan,
    geometry: Geometry,
    offers: Sequence[Offer],
    request: PlanRequest,
    link: Link,
    costs: Costs = DEFAULT_COSTS,
) -> Planned:
    """Predict time and memory of any checked plan, such as one from a file.

    The plan's own wire and KV types count, not the request's.

    Raises:
        PlanError: a member is not among the offers.
    """
    here = {o.name for o in offers}
    missing = [m.agent for m in plan.members if m.agent not in here]
    if missing:
        raise PlanError(
            f"plan names agent {missing[0]!r}, which is not here; here are: "
            f"{', '.join(sorted(here)) or 'none'}"
        )
    index = {o.name: i for i, o in enumerate(offers)}
    ranks = [index[m.agent] for m in plan.members]
    sizes = atom_sizes(geometry, replace(request, wire=plan.wire, kv=plan.kv))
    counts = counts_of(plan, geometry)
    weights, pools = counts.weights_bytes(sizes), counts.pool_bytes(sizes)
    forecasts = tuple(
        MemberForecast(offers[i].name, int(w), int(p), offers[i].memory_bytes)
        for i, w, p in zip(ranks, weights, pools, strict=True)
    )
    slowest = slowest_link(link, (offers[i] for i in ranks))
    time = token_time(counts, sizes, rates(offers)[ranks], slowest, costs)
    return Planned(plan, time, forecasts)


def _plan(
    model_id: ModelId, names: Sequence[AgentName], counts: Counts, request: PlanRequest
) -> Plan:
    """Return the plan of one stage in which each member holds one run of each class a layer."""
    members = []
    groups_from, columns_from = (_starts(c) for c in (counts.groups, counts.columns))
    vocab_from = _starts(counts.vocab[None])[0]
    n_layers = len(counts.groups)
    for rank, name in enumerate(names):
        layers = tuple(
            LayerShare(
                layer,
                head_groups=_run(groups_from[layer][rank], counts.groups[layer, rank]),
                columns=_run(columns_from[layer][rank], counts.columns[layer, rank]),
            )
            for layer in range(n_layers)
            if counts.groups[layer, rank] or counts.columns[layer, rank]
        )
        members.append(Member(name, layers, _run(vocab_from[rank], counts.vocab[rank])))
    return Plan(
        model_id=model_id,
        stages=(Stage(0, n_layers, tuple(members)),),
        wire=request.wire,
        kv=request.kv,
        context_tokens=request.context_tokens,
    )


def _starts(counts: Ints) -> Ints:
    """Return the first atom of each member, by layer and rank."""
    starts: Ints = np.cumsum(counts, axis=1) - counts
    return starts


def _run(first: int, count: int) -> tuple[AtomRange, ...]:
    return (AtomRange(int(first), int(count)),) if count else ()
