"""Random placements, to show that placement does not change the words. Pure.

Atoms are scattered one by one, in ranges out of order, differently in every layer; stages are
cut at random. No planner would make such a plan, but every one of them is legal.
"""

import random
from collections.abc import Sequence

from agent.ids import AgentName, ModelId
from agent.share import AtomRange, KvFormat, LayerShare, WireFormat
from coordinator.plan import Member, Plan, Stage
from kernels.layout import Geometry

__all__ = ["random_plan"]


def random_plan(
    rng: random.Random,
    model_id: ModelId,
    geometry: Geometry,
    names: Sequence[AgentName],
    *,
    max_stages: int = 3,
    wire: WireFormat = "f16",
    kv: KvFormat = "f16",
    context_tokens: int = 0,
) -> Plan:
    """Return a legal plan in which every agent appears and holds atoms at random.

    Args:
        rng: the only source of chance.
        model_id: the model.
        geometry: its shapes.
        names: agents to use, at least one; in a shuffled order of ranks.
        max_stages: most stages; fewer where there are fewer agents or layers.
        wire: type of exchanged numbers.
        kv: type of cached keys and values.
        context_tokens: longest context.
    """
    agents = list(names)
    rng.shuffle(agents)
    n_stages = rng.randint(1, min(max_stages, len(agents), geometry.n_layers))
    layer_cuts = _cuts(rng, geometry.n_layers, n_stages)
    agent_cuts = _cuts(rng, len(agents), n_stages)
    vocab = _scatter(rng, geometry.n_vocab_atoms, len(agents))
    stages = []
    for s in range(n_stages):
        ranks = range(agent_cuts[s], agent_cuts[s + 1])
        layers = range(layer_cuts[s], layer_cuts[s + 1])
        shares = [_layer_shares(rng, geometry, layer, len(ranks)) for layer in layers]
        members = tuple(
            Member(
                agents[rank],
                tuple(of[i] for of in shares if of[i].head_groups or of[i].columns),
                vocab[rank],
            )
            for i, rank in enumerate(ranks)
        )
        stages.append(Stage(layers.start, len(layers), members))
    return Plan(model_id, tuple(stages), wire=wire, kv=kv, context_tokens=context_tokens)


def _layer_shares(
    rng: random.Random, geometry: Geometry, layer: int, n_members: int
) -> list[LayerShare]:
    groups = _scatter(rng, geometry.n_kv_heads, n_members)
    columns = _scatter(rng, geometry.n_column_atoms, n_members)
    return [LayerShare(layer, g, c) for g, c in zip(groups, columns, strict=True)]


def _scatter(rng: random.Random, n_atoms: int, n_members: int) -> list[tuple[AtomRange, ...]]:
    """Return each member's ranges of atoms, scattered at random and out of order."""
    # Uneven weights, so that some members hold most and some nothing.
    weights = [rng.random() ** 2 + 0.01 for _ in range(n_members)]
    owners = rng.choices(range(n_members), weights, k=n_atoms)
    ranges: list[list[AtomRange]] = [[] for _ in range(n_members)]
    first = 0
    for atom in range(1, n_atoms + 1):
        if atom == n_atoms or owners[atom] != owners[first]:
            ranges[owners[first]].append(AtomRange(first, atom - first))
            first = atom
    for held in ranges:
        rng.shuffle(held)
    return [tuple(held) for held in ranges]


def _cuts(rng: random.Random, n: int, n_parts: int) -> list[int]:
    """Return the ends of n_parts random non-empty parts of n things: 0, ..., n."""
    return [0, *sorted(rng.sample(range(1, n), n_parts - 1)), n]
