"""Placements that a prediction is fitted on and judged by: uneven, scattered, of few boards. Pure.

Given by how many parts of each class of atoms a board gets, so that they suit any model.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent.ids import AgentName
from coordinator.plan import Plan
from coordinator.planner.balance import balance
from coordinator.planner.holdings import Holdings, plan_of
from kernels.layout import Geometry

__all__ = ["FITTED", "JUDGED", "N_BOARDS", "Placement", "placed"]

Ints = npt.NDArray[np.int64]

N_BOARDS = 4
Parts = tuple[int, int, int, int]


class Placement(NamedTuple):
    """Who holds what, and how long the text is.

    Attributes:
        name: for people.
        groups, columns, vocab: parts of the whole that each of the boards gets.
        scattered: atoms of each layer lie in no order, else each board has one run.
        is_long: the text is written after a long prompt.
    """

    name: str
    groups: Parts
    columns: Parts
    vocab: Parts
    scattered: bool = False
    is_long: bool = False


FITTED = (
    Placement("all four alike", (1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1)),
    Placement("the first two alike", (1, 1, 0, 0), (1, 1, 0, 0), (1, 1, 0, 0)),
)
JUDGED = (
    Placement("one alone", (0, 1, 0, 0), (0, 1, 0, 0), (0, 1, 0, 0)),
    Placement("two, uneven", (3, 0, 1, 0), (7, 0, 3, 0), (1, 0, 0, 0)),
    Placement("three, attention and MLP apart", (1, 0, 1, 0), (0, 1, 0, 0), (0, 1, 1, 0)),
    Placement("three, scattered atoms", (2, 1, 0, 1), (4, 5, 0, 3), (2, 1, 0, 0), scattered=True),
    Placement("four, most on the slowest", (1, 1, 1, 1), (1, 2, 3, 4), (0, 1, 0, 3)),
    Placement("four, a long context", (2, 1, 1, 0), (10, 8, 6, 4), (3, 2, 1, 1), is_long=True),
)


def placed(placement: Placement, geometry: Geometry, names: Sequence[str], like: Plan) -> Plan:
    """Return the plan of a placement on N_BOARDS boards; what else a plan says is that of `like`.

    Boards that get nothing are no members.
    """
    rng = random.Random(placement.name)
    agents = [AgentName(name) for name in names]
    layers = range(geometry.n_layers)
    rows = [_owners(geometry.n_kv_heads, placement.groups) for _ in layers]
    columns = [_owners(geometry.n_column_atoms, placement.columns) for _ in layers]
    vocab = _owners(geometry.n_vocab_atoms, placement.vocab)
    if placement.scattered:
        for row in (*rows, *columns, vocab):
            rng.shuffle(row)
    found = (np.array(part, np.int64) for part in (rows, columns, vocab))
    return plan_of(Holdings(*found), agents, like)


def _owners(n_atoms: int, parts: Parts) -> list[int]:
    """Return the board of each atom, one run a board."""
    caps = [n_atoms if part else 0 for part in parts]
    shares = balance(n_atoms, [1.0 / max(part, 1) for part in parts], caps)
    assert shares is not None
    return [board for board, n in enumerate(shares) for _ in range(n)]
