"""The simulation of changing load: its trace, its accounts, and what ours may not lose."""

import json
from dataclasses import replace

import pytest

from tools import cli
from tools.simulation.load import LoadSetting, simulate, trace

SETTING = LoadSetting(dwell_s=15.0, duration_s=20.0)


def test_boards_dwell_as_long_as_they_should() -> None:
    setting = replace(SETTING, dwell_s=5.0, duration_s=4000.0)
    states = trace(setting, 1)
    assert states == trace(setting, 1)
    assert states != trace(setting, 2)
    assert [at_s for at_s, _ in states] == sorted(at_s for at_s, _ in states)
    assert len(states) / 4 == pytest.approx(4000 / 5, rel=0.1)
    seen = {rate for _, state in states for rate in state.rates}
    assert sorted(seen) == pytest.approx([1.4e9, 4e9])


def test_nothing_changes_and_nobody_moves() -> None:
    calm = replace(SETTING, slow_share=1.0)
    static = simulate(calm, 3, "static")
    for policy in ("resident", "moved", "oracle"):
        outcome = simulate(calm, 3, policy)
        assert outcome.n_changes == 0
        assert outcome.tokens_per_s == pytest.approx(static.tokens_per_s)


def test_ours_lies_between_static_and_oracle() -> None:
    speeds = {
        p: simulate(SETTING, 3, p).tokens_per_s for p in ("static", "resident", "moved", "oracle")
    }
    assert speeds["static"] < speeds["moved"] < speeds["resident"] < speeds["oracle"]
    assert speeds["resident"] > 0.9 * speeds["oracle"]


def test_jumping_pays_for_what_it_moves() -> None:
    flicker = replace(SETTING, dwell_s=3.0, duration_s=30.0)
    jumping = simulate(flicker, 3, "jump")
    assert jumping.moved_bytes > 1e9
    assert jumping.tokens_per_s < simulate(flicker, 3, "static").tokens_per_s


def test_losses_and_squeezes_leave_the_slowdowns_as_they_were() -> None:
    calm = replace(SETTING, duration_s=500.0)
    rough = replace(calm, lost_every_s=60.0, away_s=20.0, squeezed_every_s=80.0)
    states = [state for _, state in trace(rough, 4)]
    assert any(0.0 in state.rates for state in states)
    assert any(min(state.memory_bytes) < calm.memory_bytes for state in states)
    slow = {at_s for at_s, _ in trace(calm, 4)}
    assert slow < {at_s for at_s, _ in trace(rough, 4)}


@pytest.mark.parametrize("resident", ["resident", "moved"])
def test_a_lost_board_stops_tokens_for_a_while_and_is_used_again(resident: str) -> None:
    """Static has no tokens while a board is away; ours goes on with the others."""
    steady = replace(SETTING, slow_share=1.0, duration_s=120.0, lost_every_s=60.0, away_s=30.0)
    ours, static = simulate(steady, 1, resident), simulate(steady, 1, "static")
    reasons = [c.reason for c in ours.changes]
    assert "lost" in reasons
    assert "join" in reasons
    assert static.gaps_s > 20
    assert ours.gaps_s < 0.5 * static.gaps_s
    assert ours.tokens_per_s < simulate(steady, 1, "oracle").tokens_per_s
    assert min(ours.curve) == 0.0 or resident == "resident"
    prefilled = simulate(replace(steady, mirrored=False), 1, resident)
    assert prefilled.gaps_s > ours.gaps_s + 10


def test_memory_that_others_take_is_left_to_them() -> None:
    squeezed = replace(
        SETTING, slow_share=1.0, duration_s=100.0, squeezed_every_s=60.0, squeezed_s=40.0
    )
    ours, static = (simulate(squeezed, 2, p) for p in ("resident", "static"))
    assert "memory" in [c.reason for c in ours.changes]
    assert ours.tokens_per_s > 1.5 * static.tokens_per_s
    left = squeezed.memory_bytes * squeezed.squeezed_share
    assert any(0 < min(c.held_bytes) < left or min(c.held_bytes) == 0 for c in ours.changes)


def test_the_verb_ends_with_one_json_object_and_writes_plots(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["simulate", "load", "--dwell", "15", "--seeds", "1", "--seed", "3", "--seconds", "5"]
    assert cli.main([*words, "-j", "1", "--plots", f"{tmp_path}/plots"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert len(table) == 3
    (row,) = json.loads(last)["rows"]
    assert row["static"][0] <= row["oracle"][0]
    assert len(row["resident_most_held_mb"]) == 4


@pytest.mark.parametrize(
    "words",
    [["--dwell", "x"], ["--boards", "4,-1"], ["--seeds", "0"], ["--seconds", "nan"],
     ["--slow-share", "2"], ["--sample", "0"], ["--lost-every", "-1"]],
)  # fmt: skip
def test_wrong_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "load", *words]) == 2
    assert f"error: {words[0]} " in capsys.readouterr().err
