"""What a re-plan looks at: placements that may be better, or get it out of trouble. Pure."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from coordinator.planner.change import (
    Setting,
    chains,
    mixtures,
    over_full_bytes,
    patched,
    redealt,
    spread,
)
from coordinator.planner.cost import Costs, Counts, Link, Offer, PlanRequest
from coordinator.planner.subset import Subsets
from kernels.layout import Geometry

__all__ = ["Asked", "proposals"]


class Asked(NamedTuple):
    """What every plan rests on: the model, agents, request, link and fixed costs."""

    geometry: Geometry
    offers: Sequence[Offer]
    request: PlanRequest
    link: Link
    costs: Costs


def proposals(
    held: Counts, asked: Asked, setting: Setting, forced: bool
) -> Iterator[tuple[str, Counts]]:
    """Yield placements with their names; they may be slower, over-full, or the present one.

    Args:
        held: present atoms of each agent; fewer than all where agents are gone.
        asked: what they must serve.
        setting: what they are judged by.
        forced: the present placement cannot stay.
    """
    geometry = asked.geometry
    best = _best_fill(held, asked, setting)
    if forced:
        totals = geometry.n_kv_heads, geometry.n_column_atoms, geometry.n_vocab_atoms
        least = patched(held, totals, setting)
        if least is not None:
            yield "least change", least
        fits = over_full_bytes(held, setting) <= 0
        if not fits.all():
            # To shrink, an agent needs room for a second KV pool. To leave it needs none.
            others = setting._replace(
                allowed=setting.allowed & fits, may_keep=setting.may_keep & fits
            )
            rest = patched(held, totals, others)
            if rest is not None:
                yield "none on full agents", rest
        if best is not None:
            yield "everything", best
        return
    if best is not None:
        yield from mixtures(held, best)
    yield from chains(held, setting)


def _best_fill(held: Counts, asked: Asked, setting: Setting) -> Counts | None:
    """Return the fill of the best agents, dealt to the layers near the present one."""
    allowed = np.flatnonzero(setting.allowed).tolist()
    if not allowed:
        return None
    offers = [asked.offers[j] for j in allowed]
    subsets = Subsets(asked.geometry, offers, asked.request, asked.link, asked.costs)
    users = held.groups.any(0) | held.columns.any(0) | (held.vocab > 0)
    now = tuple(i for i, j in enumerate(allowed) if users[j])
    chosen = subsets.quick([now] if now else [])
    if chosen is None:
        return None
    ranks = [allowed[i] for i in chosen.members]
    counts = spread(chosen.counts, ranks, len(asked.offers))
    return counts._replace(
        groups=redealt(counts.groups, held.groups),
        columns=redealt(counts.columns, held.columns),
    )
