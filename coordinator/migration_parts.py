"""What a change of plan moves: which head groups come from where, and who is not touched. Pure."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from agent.ids import AgentName, Epoch
from agent.migration_messages import Group, Share
from agent.share import indices
from coordinator.plan import Plan

__all__ = ["HeldAt", "MoveParts", "holders_of", "move_parts", "shares_to"]


class HeldAt(NamedTuple):
    """Where the rows of a head group are: in the plan in force, or in the pool of an epoch."""

    agent: AgentName
    of_epoch: Epoch = Epoch(0)


class MoveParts(NamedTuple):
    """Who does what.

    Attributes:
        old: members of the plan in force.
        new: members of the plan to come.
        kept: members of both with the same atoms: one pool serves both epochs, nothing is copied.
        shares: the head groups of all other members of the new plan, by their holder in the old.
    """

    old: frozenset[AgentName]
    new: frozenset[AgentName]
    kept: frozenset[AgentName]
    shares: tuple[Share, ...]

    @property
    def targets(self) -> frozenset[AgentName]:
        """Members of the new plan that need a pool of their own for it."""
        return self.new - self.kept

    @property
    def sources(self) -> frozenset[AgentName]:
        """Agents that others read from."""
        return frozenset(AgentName(s.source) for s in self.shares if not s.local)

    def moved_groups(self) -> int:
        """Return how many head groups go to another agent."""
        return sum(len(s.groups) for s in self.shares if not s.local)


def move_parts(old: Plan, new: Plan) -> MoveParts:
    """Return what moves when `new` takes over from `old`; both are checked plans of one model."""
    before, after = _contents(old), _contents(new)
    same = (old.wire, old.kv) == (new.wire, new.kv)
    kept = frozenset(n for n in after if same and before.get(n) == after[n])
    shares = shares_to(new, holders_of(old), kept)
    return MoveParts(frozenset(before), frozenset(after), kept, shares)


def holders_of(plan: Plan) -> dict[Group, HeldAt]:
    """Return who holds each head group."""
    return {
        Group(share.layer, group): HeldAt(member.agent)
        for member in plan.members
        for share in member.layers
        for group in indices(share.head_groups)
    }


def shares_to(
    new: Plan, held: Mapping[Group, HeldAt], kept: Collection[AgentName] = ()
) -> tuple[Share, ...]:
    """Return what the members of a plan, but for those that keep what they have, get from where."""
    shares: list[Share] = []
    for member in new.members:
        if member.agent in kept:
            continue
        by_source: dict[HeldAt, list[Group]] = {}
        for share in member.layers:
            for index in indices(share.head_groups):
                group = Group(share.layer, index)
                by_source.setdefault(held[group], []).append(group)
        for at in sorted(by_source):
            groups = tuple(by_source[at])
            shares.append(Share(len(shares), at.agent, member.agent, groups, at.of_epoch))
    return tuple(shares)


def _contents(plan: Plan) -> dict[AgentName, object]:
    """Return what each member holds, in a form to compare."""
    return {
        member.agent: (
            stage.first_layer,
            stage.n_layers,
            {
                share.layer: (indices(share.head_groups), indices(share.columns))
                for share in member.layers
                if share.head_groups or share.columns
            },
            indices(member.vocab),
        )
        for stage in plan.stages
        for member in stage.members
    }
