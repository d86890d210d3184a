"""From a plan to the list of dispatches that carries one step through it. Pure.

A dispatch is one request to a few members and one gather of their answers. The engine walks the
list top-down; nothing about a token is decided twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

from agent.frames import Phase
from agent.ids import Rank
from agent.share import count_atoms
from coordinator.plan import Plan, Stage
from kernels.layout import Geometry

__all__ = ["Dispatch", "half_layers_end", "make_schedule"]


class Dispatch(NamedTuple):
    """Run `phase` of `layer` on the members `ranks`, in whose rising order partials are added.

    `vocab_after` is set on a STAGE whose only member goes on with the vocabulary by itself.
    """

    phase: Phase
    layer: int
    ranks: tuple[Rank, ...]
    vocab_after: bool = False


def make_schedule(plan: Plan, geometry: Geometry) -> list[Dispatch]:
    """Return the dispatches of one step in order; members without atoms of a phase stay out."""
    dispatches: list[Dispatch] = []
    vocab_ranks = tuple(Rank(r) for r, m in enumerate(plan.members) if m.vocab)
    first_rank = 0
    for stage in plan.stages:
        ranks = tuple(Rank(first_rank + i) for i in range(len(stage.members)))
        first_rank += len(ranks)
        if len(stage.members) == 1:
            last = stage is plan.stages[-1] and vocab_ranks == ranks
            dispatches.append(Dispatch(Phase.STAGE, stage.first_layer, ranks, vocab_after=last))
        else:
            dispatches += _layer_phases(stage, ranks)
    if not (dispatches and dispatches[-1].vocab_after):
        dispatches.append(Dispatch(Phase.VOCAB, geometry.n_layers - 1, vocab_ranks))
    return dispatches


def half_layers_end(schedule: Sequence[Dispatch]) -> list[int]:
    """Return for each dispatch where the unbroken row of half layers that it is in ends."""
    ends = list(range(len(schedule)))
    for at in reversed(range(len(schedule))):
        if schedule[at].phase in (Phase.ATTENTION, Phase.MLP):
            ends[at] = ends[at + 1] if at + 1 < len(schedule) else at + 1
    return ends


def _layer_phases(stage: Stage, ranks: tuple[Rank, ...]) -> list[Dispatch]:
    shares = {
        (rank, share.layer): share
        for rank, member in zip(ranks, stage.members, strict=True)
        for share in member.layers
    }
    dispatches = []
    for layer in range(stage.first_layer, stage.first_layer + stage.n_layers):
        here = [(rank, shares[rank, layer]) for rank in ranks if (rank, layer) in shares]
        attention = tuple(rank for rank, share in here if count_atoms(share.head_groups))
        mlp = tuple(rank for rank, share in here if count_atoms(share.columns))
        dispatches.append(Dispatch(Phase.ATTENTION, layer, attention))
        dispatches.append(Dispatch(Phase.MLP, layer, mlp))
    return dispatches
