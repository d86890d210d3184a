"""A KV pool without weights and kernels: a second copy of what other members hold.

The hot loop owns it like those of its members and never steps in it; rows come and go as in a
migration (`hot_rows`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from agent.ids import Epoch, RunId
from agent.kv import KvPool
from agent.migration_messages import Group, Share

__all__ = ["MirrorPool", "mirrored_groups"]


@dataclass(frozen=True, eq=False)
class MirrorPool:
    """The pool of one mirror.

    Attributes:
        run_id: the coordinator's.
        epoch: names the mirror.
        groups: the head groups, in the order in which the pool has them.
    """

    run_id: RunId
    epoch: Epoch
    groups: tuple[Group, ...]
    kv: KvPool

    @cached_property
    def group_index(self) -> dict[tuple[int, int], int]:
        """Place in the pool of each head group, by (layer, group)."""
        return {(group.layer, group.group): i for i, group in enumerate(self.groups)}


def mirrored_groups(shares: Iterable[Share], me: str) -> tuple[Group, ...]:
    """Return the head groups that an agent is to mirror, each once."""
    named = (group for share in shares if share.target == me for group in share.groups)
    return tuple(dict.fromkeys(named))
