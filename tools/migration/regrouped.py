"""A plan with one head group of every layer at another member. Pure."""

import msgspec

from agent.ids import AgentName
from agent.share import AtomRange, LayerShare, indices
from coordinator.plan import Member, Plan
from kernels.errors import PlanError

__all__ = ["regrouped"]


def regrouped(plan: Plan, source: AgentName, target: AgentName) -> Plan:
    """Return the plan with the last head group of the source in each layer given to the target.

    Raises:
        PlanError: they are not in one stage, or a layer of it has no head group at the source.
    """
    for number, stage in enumerate(plan.stages):
        members = {member.agent: member for member in stage.members}
        if source not in members or target not in members or source == target:
            continue
        giver, taker = members[source], members[target]
        for layer in range(stage.first_layer, stage.first_layer + stage.n_layers):
            giver, taker = _give(giver, taker, layer)
        changed = {source: giver, target: taker}
        kept = tuple(changed.get(member.agent, member) for member in stage.members)
        stages = list(plan.stages)
        stages[number] = msgspec.structs.replace(stage, members=kept)
        return msgspec.structs.replace(plan, stages=tuple(stages))
    raise PlanError(f"no stage has both {source!r} and {target!r}")


def _give(giver: Member, taker: Member, layer: int) -> tuple[Member, Member]:
    held = _groups(giver, layer)
    if not held:
        raise PlanError(f"{giver.agent!r} has no head group of layer {layer} to give away")
    last = max(held)
    return (
        _with_groups(giver, layer, [group for group in held if group != last]),
        _with_groups(taker, layer, [*_groups(taker, layer), last]),
    )


def _groups(member: Member, layer: int) -> list[int]:
    return [
        g for share in member.layers if share.layer == layer for g in indices(share.head_groups)
    ]


def _with_groups(member: Member, layer: int, groups: list[int]) -> Member:
    ranges = tuple(AtomRange(group, 1) for group in sorted(groups))
    shares = {share.layer: share for share in member.layers}
    shares[layer] = msgspec.structs.replace(
        shares.get(layer, LayerShare(layer)), head_groups=ranges
    )
    return msgspec.structs.replace(member, layers=tuple(shares[i] for i in sorted(shares)))
