"""All layers shifted together against one atom list after another."""

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.planner.cost import Counts
from coordinator.planner.holdings import NOBODY, Holdings, Resident, shifted

Ints = npt.NDArray[np.int64]


def naive(owners: list[int], wanted: list[int], at_hand: npt.NDArray[np.bool_]) -> list[int]:
    """One layer: the last atoms leave, takers take what they have first, the poorest first."""
    owners, agents = list(owners), range(len(wanted))
    lacks = [wanted[j] - owners.count(j) for j in agents]
    takers = [j for j in agents if lacks[j] > 0]
    if not takers:
        return owners
    for j in agents:
        own = [u for u in reversed(range(len(owners))) if owners[u] == j]
        own.sort(key=lambda u: not any(at_hand[t][u] for t in takers))
        for u in own[: max(0, -lacks[j])]:
            owners[u] = NOBODY
    free = [u for u, owner in enumerate(owners) if owner == NOBODY]
    for j in sorted(takers, key=lambda j: sum(at_hand[j][u] for u in free)):
        left = [u for u in free if owners[u] == NOBODY]
        left.sort(key=lambda u: not at_hand[j][u])
        for u in left[: lacks[j]]:
            owners[u] = j
    return owners


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_agents=st.integers(1, 5),
    n_layers=st.integers(1, 4),
    n_atoms=st.integers(1, 9),
    have=st.sampled_from([0.0, 0.3, 1.0]),
    alike=st.booleans(),
)
def test_layers_shifted_together_are_those_shifted_one_by_one(
    seed: int, n_agents: int, n_layers: int, n_atoms: int, have: float, alike: bool
) -> None:
    rng = np.random.default_rng(seed)

    def owners(n_rows: int) -> Ints:
        # Some atoms have lost their agent.
        return rng.integers(-1, n_agents, (n_rows, n_atoms))

    def counts(n_rows: int) -> Ints:
        rows = rng.integers(0, n_agents, (n_rows, n_atoms))
        return np.array([np.bincount(row, minlength=n_agents) for row in rows])

    before, wanted = owners(n_layers), counts(n_layers)
    at_hand = rng.random((n_agents, n_layers, n_atoms)) < have
    if alike:
        before, wanted, at_hand = before[:1], wanted[:1], at_hand[:, :1]
        before, wanted = np.repeat(before, n_layers, 0), np.repeat(wanted, n_layers, 0)
        at_hand = np.repeat(at_hand, n_layers, 1)
    vocab, vocab_wanted, vocab_at_hand = owners(1)[0], counts(1)[0], at_hand[:, 0]
    found = shifted(
        Holdings(before, before, vocab),
        Counts(wanted, wanted, vocab_wanted, ((0, n_layers, 0, n_agents),)),
        Resident(at_hand, at_hand, vocab_at_hand),
    )
    expected = [
        naive(row.tolist(), w.tolist(), at_hand[:, i])
        for i, (row, w) in enumerate(zip(before, wanted, strict=True))
    ]
    assert found.groups.tolist() == found.columns.tolist() == expected
    assert found.vocab.tolist() == naive(vocab.tolist(), vocab_wanted.tolist(), vocab_at_hand)
