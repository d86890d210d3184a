"""The same shares, but of what each member held before as much as can be. Pure.

A plan that is made anew gives each member one run of atoms, wherever its former ones lay: after a
loss, members would pull, or hash, much of what the others have at hand. Only counts cost time; so
atoms that may stay do.
"""

from coordinator.plan import Plan
from coordinator.planner.cost import counts_of
from coordinator.planner.holdings import Resident, holdings_of, plan_of, shifted
from kernels.layout import Geometry

__all__ = ["staying"]


def staying(plan: Plan, former: Plan, geometry: Geometry) -> Plan:
    """Return a plan of one stage with the counts of `plan` that moves as few atoms as can be.

    Args:
        plan: of one stage; says who holds how many atoms.
        former: says who held which ones; members that are gone have left theirs to the others.
        geometry: the model of both.
    """
    names = [member.agent for member in plan.members]
    before = holdings_of(former, geometry, names)
    at_hand = Resident.just(before, len(names))
    return plan_of(shifted(before, counts_of(plan, geometry), at_hand), names, like=plan)
