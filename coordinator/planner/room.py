"""Whether agents have room for what they hold while one plan takes over from another. Pure."""

from collections.abc import Sequence

import numpy as np

from coordinator.plan import Plan
from coordinator.planner.cost import Counts, Offer, PlanRequest, atom_sizes
from coordinator.planner.holdings import Resident, holdings_of
from kernels.errors import ResourceError
from kernels.layout import Geometry

__all__ = ["check_room"]


def check_room(
    before: Plan, after: Plan, geometry: Geometry, offers: Sequence[Offer], request: PlanRequest
) -> None:
    """Check that a plan can take over from another one while texts are written.

    Args:
        before: the plan in force.
        after: the plan to come.
        geometry: the model's shapes.
        offers: members of it that need a KV pool of their own; others are not looked at.
        request: what both plans serve.

    Raises:
        ResourceError: an agent cannot hold weights and KV pools of both; names it and the bytes.
    """
    if not offers:
        return
    n, names = len(offers), [o.name for o in offers]
    old, new = (holdings_of(plan, geometry, names) for plan in (before, after))
    a, b = Resident.just(old, n), Resident.just(new, n)
    both = Counts(
        (a.groups | b.groups).sum(2).T,
        (a.columns | b.columns).sum(2).T,
        (a.vocab | b.vocab).sum(1),
        ((0, geometry.n_layers, 0, n),),
    )
    sizes = atom_sizes(geometry, request)
    pools = old.counts(n).pool_bytes(sizes) + new.counts(n).pool_bytes(sizes)
    needed = both.weights_bytes(sizes) + pools
    j = int((needed - np.array([o.memory_bytes for o in offers])).argmax())
    if needed[j] > offers[j].memory_bytes:
        raise ResourceError(
            f"cannot move while texts are written: agent {names[j]!r} would need {needed[j]} "
            f"bytes for weights and KV pools of both plans, and offers "
            f"{offers[j].memory_bytes}; it is done between texts"
        )
