"""`headwise verify` finds nothing wrong with the demo model, and finds planted bugs."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

import coordinator.assign
import coordinator.installer
from agent.ids import AgentName
from agent.share import Assignment
from coordinator.cluster import Cluster
from coordinator.verify import compare_logits
from tests.system.conftest import DATA, Models
from tools.cli import main

FEW = ["verify", "--agents", "1,2", "--placements", "1", "-n", "12", "-p", "Once upon a time"]
Capture = pytest.CaptureFixture[str]
Told = Mapping[AgentName, Assignment]


def check_passes(capsys: Capture, words: list[str], n_placements: int) -> None:
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "verify passed: placement does not change the words"
    exact = [line for line in lines if line.startswith("exact ")]
    default = [line for line in lines if line.startswith("default ")]
    assert (len(exact), len(default)) == (n_placements, n_placements)
    equal = r"exact    .*: \d texts equal, largest logit difference \d\.\de[+-]\d\d"
    assert all(re.fullmatch(equal, line) for line in exact)
    found = re.compile(
        r"default  .*: largest logit error \d+\.\d+ \(\d\.\d\d % of the spread, bound \d+ %\), "
        r"other argmax in \d+ of (\d+) rows, 0 of them no near-tie"
    )
    assert all(found.fullmatch(line) for line in default)


def test_the_demo_model_passes(capsys: Capture) -> None:
    check_passes(capsys, FEW, n_placements=3)


@pytest.mark.slow
def test_the_demo_model_passes_in_full(capsys: Capture) -> None:
    check_passes(capsys, ["verify"], n_placements=1 + 3 * 4)


@pytest.mark.slow
def test_a_model_without_a_tokenizer_passes(capsys: Capture, converted: Models) -> None:
    model = converted(str(DATA / "qwen2"), "q8")
    check_passes(capsys, ["verify", "-m", str(model), "--agents", "1,4"], n_placements=1 + 4)


# Planted bugs: what a member is told is not what was planned.


def with_layer(told: Told, name: AgentName, at: int, **share: Any) -> Told:
    layers = list(told[name].layers)
    layers[at] = msgspec.structs.replace(layers[at], **share)
    return {**told, name: msgspec.structs.replace(told[name], layers=tuple(layers))}


def another_head_group(told: Told) -> Told:
    """Let the first member hold a group, in one layer, that the second was planned to hold."""
    (name, first), (_, second) = list(told.items())[:2]
    groups = second.layers[2].head_groups[:1]
    assert first.layers[2].head_groups
    assert groups
    return with_layer(told, name, 2, head_groups=groups)


def columns_twice(told: Told) -> Told:
    """Let the first member hold the columns of the second instead of its own."""
    (name, _), (_, second) = list(told.items())[:2]
    return with_layer(told, name, 0, columns=second.layers[0].columns)


def vocabulary_twice(told: Told) -> Told:
    """Let the first member hold the vocabulary of the second instead of its own."""
    (name, first), (_, second) = list(told.items())[:2]
    return {**told, name: msgspec.structs.replace(first, vocab=second.vocab)}


BUGS = [
    another_head_group,
    pytest.param(columns_twice, marks=pytest.mark.slow),
    pytest.param(vocabulary_twice, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_placement_bug_is_found(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, bug: Callable[[Told], Told]
) -> None:
    assignments = coordinator.assign.assignments

    def planted(*args: Any, **options: Any) -> Told:
        told = assignments(*args, **options)
        return bug(told) if len(told) > 1 else told

    monkeypatch.setattr(coordinator.installer, "assignments", planted)
    words = ["verify", "--agents", "1,2", "--placements", "0", "-n", "24"]
    assert main(words) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "verify failed"
    assert len(lines) == 2, "verify ends at the first difference"
    assert lines[0].startswith("exact    1 agent, planned  : 4 texts equal")
    # Sometimes the words are still the same: then the logits tell.
    assert re.match(
        r"exact    2 agents, planned  : DIFFERS "
        r"(at token \d+ after prompt \[1.*\]: \[\d+\] with one agent, \[\d+\] here"
        r"|in logits by \d+\.\d+ % of their spread, bound 0\.00\d* %)$",
        lines[1],
    )


def test_errors_that_only_the_default_wire_has_are_found(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact mode may be right while f16 loses too much: the bound on logits must catch it."""
    logits = Cluster.logits

    def coarse(self: Cluster, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        found = logits(self, token_ids)
        assert self.plan is not None
        if self.plan.wire == "f16":
            # More than 8-bit activations cost (the demo model is q8), and never enough to change
            # the likeliest token.
            found[:, 7] -= 0.08 * np.ptp(found, axis=1)
        return found

    monkeypatch.setattr(Cluster, "logits", coarse)
    assert main(FEW) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "verify failed"
    assert [" texts equal" in line for line in lines] == 3 * [True] + 3 * [False]
    assert all(line.endswith(", 0 of them no near-tie  FAILED") for line in lines[3:])


def test_compare_logits_tells_near_ties_from_others() -> None:
    exact = np.array([[0.0, 5.0, 4.99, 1.0]] * 3, np.float32)
    same, tie, other = exact[:1], exact[:1].copy(), exact[:1].copy()
    tie[0, 2] = 5.01
    other[0, 3] = 9.0
    found = compare_logits(exact, np.concatenate([same, tie, other]))
    assert (found.n_rows, found.n_other_argmax) == (3, 2)
    assert found.max_error == pytest.approx(8.0)
    assert found.max_error_share == pytest.approx(8.0 / 5.0)
