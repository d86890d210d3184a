"""Schedules of faults: enough of each kind for every seed, the same for the same seed."""

from collections import Counter

import pytest

from tools.faults.schedule import HOLD_S, SHORT_S, Aim, Kind, make_schedule


@pytest.mark.parametrize("seed", range(20))
def test_two_hundred_faults_have_enough_of_each_kind_and_aim(seed: int) -> None:
    faults = make_schedule(200, seed)
    kinds, aims = Counter(f.kind for f in faults), Counter(f.aim for f in faults)
    assert [f.number for f in faults] == list(range(1, 201))
    assert all(33 <= kinds[kind] <= 34 for kind in Kind)
    assert aims == {Aim.PREFILL: 50, Aim.MOVE: 40, Aim.DECODE: 110}


def test_a_seed_gives_the_same_faults_and_another_one_others() -> None:
    assert make_schedule(50, 1) == make_schedule(50, 1)
    assert make_schedule(50, 1) != make_schedule(50, 2)


def test_kinds_and_aims_are_not_tied_to_each_other() -> None:
    faults = make_schedule(200, 1)
    assert {(f.kind, f.aim) for f in faults} == {(kind, aim) for kind in Kind for aim in Aim}


def test_times_and_picks_are_within_their_bounds() -> None:
    for fault in make_schedule(500, 3):
        low, high = HOLD_S[fault.kind]
        is_short = SHORT_S[0] <= fault.hold_s <= SHORT_S[1]
        assert low <= fault.hold_s <= high or (is_short and fault.kind in (Kind.FREEZE, Kind.CUT))
        assert 0.0 <= fault.pick < 1.0
        assert fault.after_tokens >= 1


@pytest.mark.parametrize("n_faults", [1, 2, 6, 7])
def test_small_numbers_of_faults_are_dealt_too(n_faults: int) -> None:
    faults = make_schedule(n_faults, 4)
    assert len(faults) == n_faults
    assert max(Counter(f.kind for f in faults).values()) <= -(-n_faults // len(Kind))
