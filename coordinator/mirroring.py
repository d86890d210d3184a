"""Who keeps a second copy of whose keys and values, and what a loss leaves of them. Pure.

A mirror is a migration that never commits: for each member of the plan in force some other member
gets the rows of its head groups, into a pool of their own, a few tokens behind. When a board is
lost, what it held is read from there, what the others held from their own pools, and the texts go
on in the next plan at the last row that all of these have.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from agent.ids import AgentName, Epoch
from agent.migration_messages import Group, Share
from coordinator.migration_parts import HeldAt, MoveParts, holders_of, shares_to
from coordinator.plan import Plan

__all__ = ["Mirroring", "Prospect", "choose_mirrors", "groups_of", "mirror_parts", "restore_parts"]

# Part of a link's goodput that copied rows get (measured, tools/measure_migration.py).
COPY_SHARE = 0.7
# What a copy takes besides, however small it is: orders and answers, and the first request.
COPY_S = 0.03


class Mirroring(NamedTuple):
    """Who mirrors whom.

    Attributes:
        holder_of: who has the copy of each member's rows.
        without: members whose rows nobody has room for.
    """

    holder_of: Mapping[AgentName, AgentName]
    without: tuple[AgentName, ...]

    def __str__(self) -> str:
        """Say it, for people."""
        return ", ".join(f"{x} on {m}" for x, m in sorted(self.holder_of.items())) or "nobody"


class Prospect(NamedTuple):
    """What going on after a loss is predicted to take, once a plan is ready.

    Attributes:
        copy_s: for rows that are copied.
        tail_s: for rows that are computed again behind them.
        prefill_s: for computing all rows again instead.
    """

    copy_s: float
    tail_s: float
    prefill_s: float

    @staticmethod
    def of(
        n_rows: int, n_kept: int, copied_bytes: int, row_s: float, bytes_per_s: float
    ) -> "Prospect":
        """Predict.

        Args:
            n_rows: of all texts.
            n_kept: of these, those that need not be computed again.
            copied_bytes: that go over links for it.
            row_s: what a row takes where many are computed at a time.
            bytes_per_s: goodput of the slowest link.
        """
        copy_s = COPY_S + copied_bytes / (COPY_SHARE * bytes_per_s)
        return Prospect(copy_s, row_s * (n_rows - n_kept), row_s * n_rows)

    @property
    def copying_pays(self) -> bool:
        """Whether that is the faster way."""
        return self.copy_s + self.tail_s < self.prefill_s


def groups_of(plan: Plan) -> dict[AgentName, tuple[Group, ...]]:
    """Return the head groups of each member that has any."""
    found: dict[AgentName, list[Group]] = {}
    for group, at in holders_of(plan).items():
        found.setdefault(at.agent, []).append(group)
    return {name: tuple(groups) for name, groups in found.items()}


def choose_mirrors(
    pools_bytes: Mapping[AgentName, int],
    free_bytes: Mapping[AgentName, int],
    refused: Collection[AgentName] = (),
) -> Mirroring:
    """Choose who mirrors whom; everybody as little as can be.

    Args:
        pools_bytes: what a copy of each member's rows takes.
        free_bytes: what each member has room for.
        refused: members that could not take one before.
    """
    names = sorted(free_bytes)
    taken = dict.fromkeys(names, 0)
    holder_of: dict[AgentName, AgentName] = {}
    # The largest first: it finds room hardest.
    for x in sorted(pools_bytes, key=lambda x: (-pools_bytes[x], x)):
        n_bytes = pools_bytes[x]
        able = [
            m for m in names if m != x and m not in refused and taken[m] + n_bytes <= free_bytes[m]
        ]
        if not able:
            continue
        # Its next neighbour, among equals: then each has one.
        after = names.index(x) if x in names else 0
        best = min(able, key=lambda m: (taken[m], (names.index(m) - after) % len(names)))
        holder_of[x] = best
        taken[best] += n_bytes
    return Mirroring(holder_of, tuple(sorted(set(pools_bytes) - set(holder_of))))


def mirror_parts(plan: Plan, holder_of: Mapping[AgentName, AgentName]) -> MoveParts:
    """Return what moves, for ever, where these members mirror those."""
    groups = groups_of(plan)
    shares = tuple(
        Share(number, x, holder_of[x], groups[x]) for number, x in enumerate(sorted(holder_of))
    )
    members = frozenset(member.agent for member in plan.members)
    return MoveParts(members, frozenset(holder_of.values()), frozenset(), shares)


def restore_parts(
    plan: Plan,
    left: Collection[AgentName],
    mirroring: Mirroring,
    mirror_epoch: Epoch,
    new: Plan,
) -> MoveParts | None:
    """Return what moves when a plan takes over from one that has lost members.

    Args:
        plan: the broken one.
        left: members of it that still hold their rows of it.
        mirroring: how it was mirrored.
        mirror_epoch: names the mirror.
        new: the plan to come, of members that are left and of others.

    Returns:
        None if nobody who is left has some of the rows.
    """
    held: dict[Group, HeldAt] = {}
    for group, at in holders_of(plan).items():
        if at.agent in left:
            held[group] = at
            continue
        holder = mirroring.holder_of.get(at.agent)
        if holder is None or holder not in left:
            return None
        held[group] = HeldAt(holder, mirror_epoch)
    members = frozenset(member.agent for member in new.members)
    return MoveParts(frozenset(left), members, frozenset(), shares_to(new, held))
