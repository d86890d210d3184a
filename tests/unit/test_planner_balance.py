"""Exact shares against brute force."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.planner.balance import balance, share_two

speeds = st.floats(0.05, 20)


def compositions(n_units: int, n_members: int) -> list[tuple[int, ...]]:
    """All ways to share n_units among n_members."""
    return [c for c in itertools.product(range(n_units + 1), repeat=n_members) if sum(c) == n_units]


@given(data=st.data(), n_members=st.integers(1, 4), n_units=st.integers(0, 7))
def test_balance_is_the_best_share(data: st.DataObject, n_members: int, n_units: int) -> None:
    unit_s = data.draw(st.lists(speeds, min_size=n_members, max_size=n_members))
    caps = data.draw(st.lists(st.integers(0, 7), min_size=n_members, max_size=n_members))
    allowed = [
        c
        for c in compositions(n_units, n_members)
        if all(x <= cap for x, cap in zip(c, caps, strict=True))
    ]
    found = balance(n_units, unit_s, caps)
    if not allowed:
        assert found is None
        return
    assert found is not None
    assert tuple(found) in allowed
    best = min(max(x * s for x, s in zip(c, unit_s, strict=True)) for c in allowed)
    assert max(x * s for x, s in zip(found, unit_s, strict=True)) == pytest.approx(best)


@given(
    unit_s=st.lists(speeds, min_size=1, max_size=30),
    caps=st.lists(st.integers(0, 400), min_size=30, max_size=30),
    n_units=st.integers(0, 3000),
)
def test_balance_equals_the_plain_greedy(
    unit_s: list[float], caps: list[int], n_units: int
) -> None:
    """Giving most units at once changes nothing against giving them one by one."""
    caps = caps[: len(unit_s)]
    found = balance(n_units, unit_s, caps)
    if sum(caps) < n_units:
        assert found is None
        return
    units = [0] * len(unit_s)
    for _ in range(n_units):
        j = min(
            (j for j in range(len(unit_s)) if units[j] < caps[j]),
            key=lambda j: ((units[j] + 1) * unit_s[j], j),
        )
        units[j] += 1
    assert found is not None
    slowest = max(u * s for u, s in zip(units, unit_s, strict=True))
    assert max(u * s for u, s in zip(found, unit_s, strict=True)) == pytest.approx(slowest)
    assert sum(found) == n_units


def test_balance_gives_ties_to_the_lower_order() -> None:
    assert balance(1, [1.0, 1.0, 1.0], [9, 9, 9]) == [1, 0, 0]
    assert balance(1, [1.0, 1.0, 1.0], [9, 9, 9], [2, 1, 0]) == [0, 0, 1]
    assert balance(4, [1.0, 1.0, 1.0], [9, 9, 9], [2, 1, 0]) == [1, 1, 2]


@settings(max_examples=150)
@given(data=st.data(), n_members=st.integers(1, 3))
def test_share_two_is_the_best_share(data: st.DataObject, n_members: int) -> None:
    n_units = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 6)))
    rates = data.draw(st.lists(speeds, min_size=n_members, max_size=n_members))
    a = [data.draw(st.sampled_from([0.5, 1.0, 3.0])) / r for r in rates]
    b = [1.0 / r for r in rates]
    unit_bytes = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    need = n_units[0] * unit_bytes[0] + n_units[1] * unit_bytes[1]
    # Around what is needed, so that memory binds and sometimes is too small.
    room = data.draw(st.lists(st.integers(-2, need), min_size=n_members, max_size=n_members))

    def time_s(x: tuple[int, ...], y: tuple[int, ...]) -> float:
        first = max(i * s for i, s in zip(x, a, strict=True))
        return first + max(i * s for i, s in zip(y, b, strict=True))

    def fits(x: tuple[int, ...], y: tuple[int, ...]) -> bool:
        held = (i * unit_bytes[0] + k * unit_bytes[1] for i, k in zip(x, y, strict=True))
        # A member with negative room cannot even hold what comes with the stage.
        return all(h <= r if h else True for h, r in zip(held, room, strict=True))

    best = min(
        (
            time_s(x, y)
            for x in compositions(n_units[0], n_members)
            for y in compositions(n_units[1], n_members)
            if fits(x, y)
        ),
        default=math.inf,
    )
    x = share_two(n_units, (a, b), unit_bytes, room)
    if x is None:
        assert best == math.inf
        return
    rest = [max(0, r - i * unit_bytes[0]) // unit_bytes[1] for r, i in zip(room, x, strict=True)]
    y = balance(n_units[1], b, rest)
    assert y is not None
    assert fits(tuple(x), tuple(y))
    assert time_s(tuple(x), tuple(y)) == pytest.approx(best)


def test_share_two_gives_memory_to_the_class_that_needs_it() -> None:
    # Groups take 10 bytes, columns 1; the fast member has room for 10 bytes only. Equal time is
    # won by giving it columns, because a group there would leave no column to it.
    x = share_two((2, 20), ([0.5, 1.0], [0.05, 0.1]), (10, 1), [10, 100])
    assert x == [0, 2] or x == [1, 1]
