"""What it takes to get from one placement to another: atoms, bytes, time. Pure.

Weights and KV are copied in the background while tokens flow with the old plan; only the rows of
the last round and a few round trips stop them. Copies that share a link share its goodput.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.ids import AgentName
from agent.share import AtomRange
from coordinator.planner.cost import AtomSizes, Counts, Link
from coordinator.planner.holdings import NOBODY, Holdings, Resident, numbered

__all__ = [
    "DEFAULT_MOVE_COSTS",
    "Move",
    "MoveCosts",
    "MovePrice",
    "Network",
    "Traffic",
    "guess_traffic",
    "list_moves",
    "move_price",
    "traffic",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
AtomClass = Literal["group", "column", "vocab"]


class Move(NamedTuple):
    """Atoms of one class and layer that change hands; vocab atoms have layer -1.

    `source` None: the agent that had them is gone; weights come from the coordinator, and KV
    must come from a mirror or be computed again. Bytes are those to be copied.
    """

    source: AgentName | None
    target: AgentName
    kind: AtomClass
    layer: int
    atoms: tuple[AtomRange, ...]
    weights_bytes: int
    kv_bytes: int


class MoveCosts(NamedTuple):
    """How moves disturb.

    Attributes:
        goodput_share: part of a link's goodput that background copies get.
        slow_share: by how much tokens are slower while something is copied.
        switch_s: a change of plans by itself.
        round_trips: round trips for which tokens wait.
        last_rows: rows of KV that are left to copy when tokens stop.
    """

    goodput_share: float = 0.8
    slow_share: float = 0.05
    switch_s: float = 5e-3
    round_trips: int = 2
    last_rows: int = 4


DEFAULT_MOVE_COSTS = MoveCosts()


class Network(NamedTuple):
    """Goodput of each agent's link (n,) and the coordinator's, bytes per second; one-way delay.

    `relayed`: copies between agents go through the coordinator (no inbound connections).
    """

    agents_bytes_per_s: Floats
    coordinator_bytes_per_s: float
    hop_s: float
    relayed: bool = False

    @staticmethod
    def uniform(link: Link, n_agents: int, relayed: bool = False) -> "Network":
        """Return n links that are all alike."""
        return Network.of([link] * n_agents, relayed)

    @staticmethod
    def of(links: Sequence[Link], relayed: bool = False) -> "Network":
        """Return the agents' links; the coordinator's is as good as the best of them."""
        rates = np.array([link.bytes_per_s for link in links])
        hop_s = max((link.hop_s for link in links), default=0.0)
        return Network(rates, float(rates.max(initial=0.0)), hop_s, relayed)


class Traffic(NamedTuple):
    """Bytes to copy: into and out of each agent (n,), and from the coordinator itself.

    `last_bytes`: what of it is rows of the last round; `n_atoms`: atoms that change hands.
    """

    into: Floats
    out_of: Floats
    coordinator: float
    last_bytes: float
    n_atoms: int

    @property
    def total_bytes(self) -> float:
        """All bytes that are copied."""
        return float(self.into.sum())


@dataclass(frozen=True)
class MovePrice:
    """Predicted: seconds of copying in the background, and seconds for which tokens stop."""

    copy_s: float
    stall_s: float


def traffic(
    before: Holdings,
    after: Holdings,
    resident: Resident,
    sizes: AtomSizes,
    token_bytes: int,
    n_tokens: int,
    last_rows: int = DEFAULT_MOVE_COSTS.last_rows,
) -> Traffic:
    """Return what must be copied from one placement to another.

    Args:
        before: who holds what now; atoms without owner come from the coordinator.
        after: who shall hold what.
        resident: whose weights need no copy.
        sizes: bytes of atoms.
        token_bytes: bytes of one group's keys and values of one token.
        n_tokens: tokens cached at present, over all contexts.
        last_rows: rows that come when tokens have stopped.
    """
    n_agents = len(resident.vocab)
    into, out_of = np.zeros(n_agents), np.zeros(n_agents)
    coordinator, n_atoms, n_groups = 0.0, 0, 0
    for old, new, at_hand, size in (
        (before.groups, after.groups, resident.groups, sizes.group),
        (before.columns, after.columns, resident.columns, sizes.column),
        (before.vocab, after.vocab, resident.vocab, sizes.vocab),
    ):
        where = np.nonzero(old != new)
        sources, targets = old[where], new[where]
        n_bytes = np.where(at_hand[(targets, *where)], 0, size).astype(np.float64)
        if old is before.groups:
            n_bytes += np.where(sources == NOBODY, 0, n_tokens * token_bytes)
            n_groups = int((sources != NOBODY).sum())
        n_atoms += len(targets)
        into += np.bincount(targets, n_bytes, n_agents)
        known = sources != NOBODY
        out_of += np.bincount(sources[known], n_bytes[known], n_agents)
        coordinator += float(n_bytes[~known].sum())
    rows = min(last_rows, n_tokens)
    return Traffic(into, out_of, coordinator, float(rows * token_bytes * n_groups), n_atoms)


def guess_traffic(
    before: Counts,
    after: Counts,
    spare: Counts,
    sizes: AtomSizes,
    token_bytes: int,
    n_tokens: int,
    last_rows: int = DEFAULT_MOVE_COSTS.last_rows,
) -> Traffic:
    """Return about what `traffic` will say, from counts alone; never more weights than that.

    `spare` counts the atoms that each agent has resident but does not hold.
    """
    n_agents = len(before.vocab)
    into, out_of = np.zeros(n_agents), np.zeros(n_agents)
    coordinator, n_atoms, n_groups = 0.0, 0, 0
    for old, new, others, size in (
        (before.groups, after.groups, spare.groups, sizes.group),
        (before.columns, after.columns, spare.columns, sizes.column),
        (before.vocab[None], after.vocab[None], spare.vocab[None], sizes.vocab),
    ):
        more, fewer = np.maximum(new - old, 0), np.maximum(old - new, 0)
        n_in, n_out = int(more.sum()), int(fewer.sum())
        class_into = np.maximum(more - others, 0).sum(0) * float(size)
        if old is before.groups:
            class_into += more.sum(0) * (n_tokens * token_bytes * (n_out / max(n_in, 1)))
            n_groups = n_out
        into += class_into
        share = float(class_into.sum()) / max(n_in, 1)
        out_of += fewer.sum(0) * share
        coordinator += (n_in - n_out) * share
        n_atoms += n_in
    rows = min(last_rows, n_tokens)
    return Traffic(into, out_of, coordinator, float(rows * token_bytes * n_groups), n_atoms)


def move_price(wanted: Traffic, network: Network, costs: MoveCosts) -> MovePrice:
    """Return how long copying takes and how long tokens stop; both 0 if nothing moves."""
    if wanted.n_atoms == 0:
        return MovePrice(0.0, 0.0)
    busiest = np.maximum(wanted.into, wanted.out_of) / network.agents_bytes_per_s
    through = wanted.total_bytes if network.relayed else wanted.coordinator
    slowest_s = max(float(busiest.max()), through / network.coordinator_bytes_per_s)
    takes_part = (wanted.into + wanted.out_of) > 0
    narrow = network.agents_bytes_per_s.min(
        initial=network.coordinator_bytes_per_s, where=takes_part
    )
    last_s = wanted.last_bytes / float(narrow)
    waits_s = 2 * network.hop_s * costs.round_trips + costs.switch_s
    return MovePrice(slowest_s / costs.goodput_share, waits_s + last_s)


def list_moves(
    before: Holdings,
    after: Holdings,
    names: Sequence[AgentName],
    resident: Resident,
    sizes: AtomSizes,
    kv_bytes: int,
) -> tuple[Move, ...]:
    """Return the moves in the order of layers; kv_bytes is a group's KV at the present length."""

    def moves_of(kind: AtomClass, layer: int, changes: list[_Change]) -> list[Move]:
        size, kv = of_class[kind]
        return [_move(names, kind, layer, c, size, kv) for c in changes]

    of_class: dict[AtomClass, tuple[int, int]] = {
        "group": (sizes.group, kv_bytes), "column": (sizes.column, 0), "vocab": (sizes.vocab, 0),
    }  # fmt: skip
    groups = _changes(before.groups, after.groups, resident.groups)
    columns = _changes(before.columns, after.columns, resident.columns)
    vocab = _changes(before.vocab[None], after.vocab[None], resident.vocab[:, None])
    moves: list[Move] = []
    for layer in range(len(before.groups)):
        moves += moves_of("group", layer, groups[layer])
        moves += moves_of("column", layer, columns[layer])
    return (*moves, *moves_of("vocab", -1, vocab[0]))


class _Change(NamedTuple):
    """Atoms that go from one agent to another; how many, and how many are not at hand there."""

    source: int
    target: int
    atoms: tuple[AtomRange, ...]
    n_atoms: int
    n_missing: int


def _move(
    names: Sequence[AgentName], kind: AtomClass, layer: int, c: _Change, size: int, kv: int
) -> Move:
    gone = c.source == NOBODY
    source, kv_bytes = (None, 0) if gone else (names[c.source], c.n_atoms * kv)
    return Move(source, names[c.target], kind, layer, c.atoms, c.n_missing * size, kv_bytes)


def _changes(old: Ints, new: Ints, at_hand: Bools) -> list[list[_Change]]:
    """Return the changes of each layer of one class, (layers, U) with at_hand (n, layers, U)."""
    missing = ~np.take_along_axis(at_hand, new[None], axis=0)[0]
    rows = zip(old, new, missing, strict=True)
    # Layers alike are worked out once.
    numbers = numbered(o.tobytes() + n.tobytes() + m.tobytes() for o, n, m in rows)
    first = [numbers.index(k) for k in range(max(numbers) + 1)]
    kinds = [_changes_of_layer(old[i], new[i], missing[i]) for i in first]
    return [kinds[k] for k in numbers]


def _changes_of_layer(old: Ints, new: Ints, missing: Bools) -> list[_Change]:
    """Return the changes of one layer (U,), by their first atoms."""
    changed = np.flatnonzero(old != new)
    rows = (changed, old[changed], new[changed], missing[changed])
    by_way: dict[tuple[int, int], tuple[list[int], int]] = {}
    for atom, source, target, lacks in zip(*(row.tolist() for row in rows), strict=True):
        atoms, n_missing = by_way.get((source, target)) or ([], 0)
        atoms.append(atom)
        by_way[source, target] = atoms, n_missing + lacks
    return [
        _Change(source, target, _runs(atoms), len(atoms), n_missing)
        for (source, target), (atoms, n_missing) in by_way.items()
    ]


def _runs(atoms: list[int]) -> tuple[AtomRange, ...]:
    """Return rising atoms as runs of neighbours."""
    runs: list[AtomRange] = []
    first = last = atoms[0]
    for atom in atoms[1:]:
        if atom != last + 1:
            runs.append(AtomRange(first, last + 1 - first))
            first = atom
        last = atom
    return (*runs, AtomRange(first, last + 1 - first))
