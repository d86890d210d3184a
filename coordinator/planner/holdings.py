"""Who holds each atom, as arrays: the form in which plans are compared and changed. Pure.

A plan tells of each agent what it holds; `Holdings` tells of each atom who holds it. `shifted`
changes how many atoms each agent holds and leaves every atom that may stay where it is.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent.ids import AgentName
from agent.share import AtomRange, LayerShare
from coordinator.plan import Member, Plan, Stage
from coordinator.planner.cost import Counts
from kernels.layout import Geometry

__all__ = ["NOBODY", "Holdings", "Resident", "holdings_of", "numbered", "plan_of", "shifted"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Owner of an atom whose agent is gone.
NOBODY = -1


class Holdings(NamedTuple):
    """Owner of each atom: groups (L, G), columns (L, F), vocab (V,), int64 indices of agents."""

    groups: Ints
    columns: Ints
    vocab: Ints

    def counts(self, n_agents: int) -> Counts:
        """Return how many atoms each agent holds, all in one stage."""
        n_layers = len(self.groups)
        return Counts(
            _count_rows(self.groups, n_agents),
            _count_rows(self.columns, n_agents),
            _count_rows(self.vocab[None], n_agents)[0],
            ((0, n_layers, 0, n_agents),),
        )


class Resident(NamedTuple):
    """Atoms whose weights an agent has at hand: groups (n, L, G), columns (n, L, F), vocab (n, V).

    All bool; agents by index.
    """

    groups: Bools
    columns: Bools
    vocab: Bools

    @staticmethod
    def everything(n_agents: int, geometry: Geometry) -> "Resident":
        """Return that every agent has the whole model in its cache."""
        g = geometry
        return Resident(
            np.ones((n_agents, g.n_layers, g.n_kv_heads), np.bool_),
            np.ones((n_agents, g.n_layers, g.n_column_atoms), np.bool_),
            np.ones((n_agents, g.n_vocab_atoms), np.bool_),
        )

    @staticmethod
    def just(holdings: Holdings, n_agents: int) -> "Resident":
        """Return that every agent has what it holds now, and nothing else."""
        agents = np.arange(n_agents)
        return Resident(
            holdings.groups[None] == agents[:, None, None],
            holdings.columns[None] == agents[:, None, None],
            holdings.vocab[None] == agents[:, None],
        )

    def spare(self, held: Counts) -> Counts:
        """Return how many atoms each agent has at hand but does not hold, at least about."""
        return Counts(
            np.maximum(self.groups.sum(2).T - held.groups, 0),
            np.maximum(self.columns.sum(2).T - held.columns, 0),
            np.maximum(self.vocab.sum(1) - held.vocab, 0),
            held.stages,
        )


def holdings_of(plan: Plan, geometry: Geometry, names: Sequence[AgentName]) -> Holdings:
    """Return who holds each atom of a checked plan, by index in names.

    Atoms of members that are not among the names have no owner.
    """
    g = geometry
    groups = np.full((g.n_layers, g.n_kv_heads), NOBODY, np.int64)
    columns = np.full((g.n_layers, g.n_column_atoms), NOBODY, np.int64)
    vocab = np.full(g.n_vocab_atoms, NOBODY, np.int64)
    index = {name: i for i, name in enumerate(names)}
    for member in plan.members:
        agent = index.get(member.agent, NOBODY)
        for share in member.layers:
            for r in share.head_groups:
                groups[share.layer, r.first : r.first + r.count] = agent
            for r in share.columns:
                columns[share.layer, r.first : r.first + r.count] = agent
        for r in member.vocab:
            vocab[r.first : r.first + r.count] = agent
    return Holdings(groups, columns, vocab)


def plan_of(holdings: Holdings, names: Sequence[AgentName], like: Plan) -> Plan:
    """Return the plan of one stage in which those that hold an atom are members, in their order.

    Model, context and types of wire and KV are those of `like`.
    """
    n_layers = len(holdings.groups)
    groups = [_runs_by_agent(row) for row in _shared(holdings.groups)]
    columns = [_runs_by_agent(row) for row in _shared(holdings.columns)]
    vocab = _runs_by_agent(holdings.vocab)
    users = {j for runs in (*groups, *columns, vocab) for j in runs}
    of_layer = list(zip(_row_numbers(holdings.groups), _row_numbers(holdings.columns), strict=True))
    members = []
    for j in sorted(users):
        layers = tuple(
            LayerShare(layer, groups[g].get(j, ()), columns[c].get(j, ()))
            for layer, (g, c) in enumerate(of_layer)
            if j in groups[g] or j in columns[c]
        )
        members.append(Member(names[j], layers, vocab.get(j, ())))
    return Plan(
        model_id=like.model_id,
        stages=(Stage(0, n_layers, tuple(members)),),
        wire=like.wire,
        kv=like.kv,
        exchange=like.exchange,
        context_tokens=like.context_tokens,
    )


def shifted(holdings: Holdings, wanted: Counts, resident: Resident) -> Holdings:
    """Return holdings with the wanted counts that move as few atoms as can be.

    Among the atoms that must move, each taker gets those it has resident first.
    """
    return Holdings(
        _shift_rows(holdings.groups, wanted.groups, resident.groups),
        _shift_rows(holdings.columns, wanted.columns, resident.columns),
        _shift_rows(holdings.vocab[None], wanted.vocab[None], resident.vocab[:, None])[0],
    )


def _shift_rows(owners: Ints, wanted: Ints, resident: Bools) -> Ints:
    """Shift every row by itself, (rows, U) with wanted (rows, n) and resident (n, rows, U)."""
    lacks = wanted - _count_rows(owners, wanted.shape[1])
    # Rows without takers stay. Layers are mostly alike: each kind is worked out once.
    changed = np.flatnonzero((lacks > 0).any(axis=1)).tolist()
    bits = np.packbits(resident, axis=2)
    numbers = numbered(
        owners[i].tobytes() + lacks[i].tobytes() + bits[:, i].tobytes() for i in changed
    )
    result = owners.copy()
    if changed:
        first = [changed[numbers.index(k)] for k in range(max(numbers) + 1)]
        kinds = _shift_kinds(owners[first], lacks[first], resident[:, first])
        result[changed] = kinds[numbers]
    return result


def numbered(keys: Iterable[bytes]) -> list[int]:
    """Return the number of each key, in the order of first occurrences."""
    known: dict[bytes, int] = {}
    return [known.setdefault(key, len(known)) for key in keys]


def _shift_kinds(owners: Ints, lacks: Ints, resident: Bools) -> Ints:
    """Shift rows (rows, U); lacks (rows, n) atoms of each agent are to come, or to leave if < 0."""
    takes = lacks > 0
    useful: Bools = np.logical_or.reduce(resident & takes.T[:, :, None], axis=0)
    shifted_rows = _released(owners, np.maximum(-lacks, 0), useful)
    free = shifted_rows == NOBODY
    n_at_hand = (resident & free).sum(axis=2).T
    # Where nobody has some of the free atoms only, they are dealt in their order.
    some = takes & (n_at_hand > 0) & (n_at_hand < free.sum(axis=1)[:, None])
    plain = ~some.any(axis=1)
    _deal_in_order(shifted_rows, free & plain[:, None], lacks, takes & plain[:, None], n_at_hand)
    for i in np.flatnonzero(~plain).tolist():
        _deal_by_choice(shifted_rows[i], lacks[i], n_at_hand[i], resident[:, i])
    return shifted_rows


def _released(owners: Ints, n_released: Ints, useful: Bools) -> Ints:
    """Return owners (rows, U) after each agent has given up so many atoms, (rows, n).

    The last ones leave, so that what stays is mostly one run; but first what a taker has.
    """
    n_rows, n_atoms = owners.shape
    row = np.repeat(np.arange(n_rows), n_atoms)
    keys = row * (n_released.shape[1] + 1) + owners.ravel() + 1
    # Places of atoms by owner, those that leave first in front.
    order = np.lexsort((-np.arange(keys.size), ~useful.ravel(), keys))
    sorted_keys = keys[order]
    starts = np.flatnonzero(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]])
    place = np.arange(keys.size) - np.repeat(starts, np.diff(np.r_[starts, keys.size]))
    # Atoms without owner stay as they are.
    leaving = np.pad(n_released, ((0, 0), (1, 0))).ravel()[sorted_keys]
    released = owners.ravel().copy()
    released[order[place < leaving]] = NOBODY
    return released.reshape(owners.shape)


def _deal_in_order(owners: Ints, free: Bools, lacks: Ints, takes: Bools, n_at_hand: Ints) -> None:
    """Give free atoms to takers in place, in their order; who has none of them at hand first."""
    row, taker = np.nonzero(takes)
    order = np.lexsort((taker, n_at_hand[row, taker], row))
    row, taker = row[order], taker[order]
    owners[free] = np.repeat(taker, lacks[row, taker])


def _deal_by_choice(owners: Ints, lacks: Ints, n_at_hand: Ints, resident: Bools) -> None:
    """Give the free atoms of one row (U,) to takers in place, who take what they have first."""
    free = np.flatnonzero(owners == NOBODY)
    takers = np.flatnonzero(lacks > 0)
    # Whoever has least of the free atoms at hand chooses first.
    for j in takers[np.argsort(n_at_hand[takers], kind="stable")].tolist():
        owners[_those_first(free, resident[j])[: lacks[j]]] = j
        free = free[owners[free] == NOBODY]


def _those_first(atoms: Ints, wanted: Bools) -> Ints:
    """Return atoms in their order, but the wanted ones before the others."""
    first = wanted[atoms]
    if not first.any():
        return atoms
    return np.concatenate((atoms[first], atoms[~first]))


def _count_rows(owners: Ints, n_agents: int) -> Ints:
    """Return how many atoms of each row each agent owns, (rows, n)."""
    n_rows = len(owners)
    # One more column for atoms without owner.
    slots = np.arange(n_rows)[:, None] * (n_agents + 1) + owners + 1
    counts: Ints = np.bincount(slots.ravel(), minlength=n_rows * (n_agents + 1))
    return counts.reshape(n_rows, n_agents + 1)[:, 1:]


def _shared(rows: Ints) -> list[Ints]:
    """Return the different rows, in the order of their first occurrence."""
    return list({row.tobytes(): row for row in rows}.values())


def _row_numbers(rows: Ints) -> list[int]:
    """Return the place of each row in `_shared`."""
    return numbered(row.tobytes() for row in rows)


def _runs_by_agent(owners: Ints) -> dict[int, tuple[AtomRange, ...]]:
    """Return the runs of neighbouring atoms of each agent, rising."""
    starts = [0, *(np.flatnonzero(owners[1:] != owners[:-1]) + 1).tolist()]
    runs: dict[int, list[AtomRange]] = {}
    for first, end in zip(starts, [*starts[1:], len(owners)], strict=True):
        runs.setdefault(int(owners[first]), []).append(AtomRange(first, end - first))
    return {agent: tuple(own) for agent, own in runs.items()}
