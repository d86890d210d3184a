"""Why a plan is as it is: where a token's time goes, who holds it up, and what it beat. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent.ids import AgentName
from coordinator.plan import Plan
from coordinator.planner.cost import (
    DEFAULT_COSTS,
    Costs,
    Counts,
    Link,
    Offer,
    PlanRequest,
    atom_sizes,
    counts_of,
    rates,
    slowest_link,
    token_time,
)
from coordinator.planner.place import Planned, make_plan
from kernels.layout import Geometry

__all__ = ["Explanation", "Part", "explain"]

Floats = npt.NDArray[np.float64]

# More memory than any board has: "what if memory were plenty".
PLENTY_BYTES = 1 << 50


class Part(NamedTuple):
    """A part of a token's time, and who is mostly waited for; None: nobody in particular."""

    name: str
    seconds: float
    slowest: AgentName | None


class Explanation(NamedTuple):
    """What there is to say about a plan.

    Attributes:
        parts: their seconds add up to the token's time.
        idle: agents that are here and hold nothing.
        full: members that have no room for one more atom of each layer.
        roomy_s: token time of the best plan if no memory were full; None if none is.
        equal_s: token time of equal slices on all agents.
        equal_lacks: agents that cannot hold their equal slice.
        token_s: the plan's own token time.
    """

    parts: tuple[Part, ...]
    idle: tuple[AgentName, ...]
    full: tuple[AgentName, ...]
    roomy_s: float | None
    equal_s: float
    equal_lacks: tuple[AgentName, ...]
    token_s: float

    def lines(self) -> list[str]:
        """Return it for people, one sentence a line."""
        parts = [
            f"{p.name} {1e3 * p.seconds:.2f} ms" + (f" ({p.slowest})" if p.slowest else "")
            for p in self.parts
        ]
        lines = [f"a token waits for: {', '.join(parts)}"]
        if self.idle:
            lines.append(f"not used: {', '.join(self.idle)}; the table below says why")
        if self.full and self.roomy_s is not None:
            slower = 100 * (self.token_s / self.roomy_s - 1)
            lines.append(
                f"full: {', '.join(self.full)}; with more memory there a token would take "
                f"{1e3 * self.roomy_s:.2f} ms, now it is {slower:.0f} % slower"
            )
        equal = f"equal slices on every agent: {1e3 * self.equal_s:.2f} ms per token"
        if self.equal_lacks:
            equal += f", but {', '.join(self.equal_lacks)} could not hold theirs"
        else:
            more = 100 * (self.equal_s / self.token_s - 1)
            equal += f", {abs(more):.0f} % {'slower' if more >= 0 else 'faster'}"
        return [*lines, equal]


def explain(
    planned: Planned,
    geometry: Geometry,
    offers: Sequence[Offer],
    request: PlanRequest,
    link: Link,
    costs: Costs = DEFAULT_COSTS,
) -> Explanation:
    """Explain a plan that was made or assessed with the same arguments."""
    plan = planned.plan
    request = replace(request, wire=plan.wire, kv=plan.kv)
    sizes, speeds = atom_sizes(geometry, request), rates(offers)
    members = {m.agent for m in plan.members}
    # No room for one more column atom in every layer.
    unit_bytes = geometry.n_layers * sizes.column
    full = tuple(m.agent for m in planned.members if m.budget_bytes - m.total_bytes < unit_bytes)
    equal = _equal(geometry, len(offers))
    needs = equal.weights_bytes(sizes) + equal.pool_bytes(sizes)
    roomy_s = None
    if full:
        roomy = [o._replace(memory_bytes=PLENTY_BYTES) for o in offers]
        roomy_s = make_plan(plan.model_id, geometry, roomy, request, link, costs).token_s
    return Explanation(
        parts=_parts(planned, geometry, offers, request),
        idle=tuple(o.name for o in offers if o.name not in members),
        full=full,
        roomy_s=roomy_s,
        equal_s=token_time(equal, sizes, speeds, slowest_link(link, offers), costs).total_s,
        equal_lacks=tuple(
            o.name for o, n in zip(offers, needs.tolist(), strict=True) if n > o.memory_bytes
        ),
        token_s=planned.token_s,
    )


def _parts(
    planned: Planned, geometry: Geometry, offers: Sequence[Offer], request: PlanRequest
) -> tuple[Part, ...]:
    plan, sizes = planned.plan, atom_sizes(geometry, request)
    index = {o.name: i for i, o in enumerate(offers)}
    speeds = rates(offers)[[index[m.agent] for m in plan.members]]
    counts = counts_of(plan, geometry)
    parts = (
        _part("attention", counts.groups * (sizes.group_read / speeds), plan),
        _part("MLP", counts.columns * (sizes.column / speeds), plan),
        _part("vocabulary", (counts.vocab * (sizes.vocab / speeds))[None], plan),
    )
    rest_s = planned.token_s - sum(p.seconds for p in parts)
    return (*parts, Part("calls, exchanges and sampling", rest_s, None))


def _part(name: str, busy_s: Floats, plan: Plan) -> Part:
    """Return the sum over rows of the slowest member, who is the one in most rows."""
    slowest = Counter(busy_s.argmax(axis=1).tolist()).most_common(1)[0][0]
    # Nobody waits for a member that is alone.
    alone = int((busy_s.sum(axis=0) > 0).sum()) == 1
    agent = None if alone else plan.members[slowest].agent
    return Part(name, float(busy_s.max(axis=1).sum()), agent)


def _equal(geometry: Geometry, n: int) -> Counts:
    """Return equal slices, the first agents taking what is left over."""
    g = geometry

    def slices(total: int) -> npt.NDArray[np.int64]:
        return total // n + (np.arange(n) < total % n)

    groups = np.tile(slices(g.n_kv_heads), (g.n_layers, 1))
    columns = np.tile(slices(g.n_column_atoms), (g.n_layers, 1))
    return Counts(groups, columns, slices(g.n_vocab_atoms), ((0, g.n_layers, 0, n),))
