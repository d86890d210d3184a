"""Mirrors with real processes: after a loss a text goes on with rows that were kept elsewhere."""

import itertools
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.ids import AgentName
from coordinator.cluster import Cluster
from coordinator.engine import Engine
from coordinator.rows import Rows
from tests.system.processes import AGENT, Command
from tests.system.site import Site

PROMPTS = [[5, 6, 7] * 40, [9] * 70]
N_TOKENS = 90
# Rows that a mirror may lack while steps take milliseconds: what is written meanwhile.
FEW = 40


@pytest.fixture(autouse=True)
def copying_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is so small that computing anything again takes no time either."""
    monkeypatch.setattr("coordinator.mirroring.COPY_S", 0.0)


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[list[int]]]:
    """Positions of the rows of each step, by the epoch that carried them."""
    steps: dict[int, list[list[int]]] = {}
    step = Engine.step

    def noting(engine: Engine, x: Any, rows: Rows, *args: Any) -> Any:
        steps.setdefault(engine._epoch, []).append(list(rows.positions))
        return step(engine, x, rows, *args)

    monkeypatch.setattr(Engine, "step", noting)
    return steps


@pytest.fixture
def cluster(endless: Path) -> Iterator[Cluster]:
    with Cluster(endless, local=3, exact=True, context_tokens=512, mirror=True) as cluster:
        yield cluster


def kill(cluster: Cluster, *names: str) -> None:
    for name in names:
        os.kill(cluster.local_pids[AgentName(name)], signal.SIGKILL)


def lag(cluster: Cluster) -> int | None:
    view = cluster.mirrors.view()
    assert view is not None
    return view.lag_tokens


def write(
    cluster: Cluster, prompts: Sequence[list[int]], each: Callable[[int], None] = lambda _: None
) -> list[list[int]]:
    """Write texts in turn and return their tokens; `each` is called in every turn."""
    texts = [cluster.generate(prompt_ids=prompt, max_tokens=N_TOKENS) for prompt in prompts]
    ids: list[list[int]] = [[] for _ in texts]
    for turn in itertools.count():
        tokens = [next(text, None) for text in texts]
        if not any(tokens):
            return ids
        for token, of in zip(tokens, ids, strict=True):
            if token is not None and token.id is not None:
                of.append(token.id)
        each(turn)
    raise AssertionError("unreachable")


class Victims:
    """Kills agents as soon as a mirror has nearly all, some tokens into the text."""

    def __init__(self, cluster: Cluster, *names: str) -> None:
        self.cluster, self.names = cluster, names
        self.turn: int | None = None

    def __call__(self, turn: int) -> None:
        behind = lag(self.cluster)
        if self.turn is None and turn >= 30 and behind is not None and behind <= FEW:
            self.turn = turn
            kill(self.cluster, *self.names)


def said(caplog: pytest.LogCaptureFixture, pattern: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if re.search(pattern, r.getMessage())]


def test_after_a_loss_only_the_tail_is_computed_again(
    cluster: Cluster, carried: dict[int, list[list[int]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coordinator")
    wanted = write(cluster, PROMPTS[:1])
    before, victim = cluster.epoch, Victims(cluster, "local-2")
    assert write(cluster, PROMPTS[:1], victim) == wanted
    assert victim.turn is not None
    assert cluster.epoch > before
    assert len(said(caplog, "recovery from=mirror")) == 1
    # The row behind the last token of that turn was under way, or about to be.
    n_rows = len(PROMPTS[0]) + victim.turn + 1
    first = carried[cluster.epoch][0][0]
    assert n_rows - 2 * FEW <= first <= n_rows
    assert not any(0 in positions for positions in carried[cluster.epoch])
    # A mirror of what is left, for the next one.
    assert write(cluster, PROMPTS[:1], Victims(cluster, "local-1")) == wanted
    assert len(said(caplog, "recovery from=mirror")) == 2
    assert cluster.plan is not None
    assert [member.agent for member in cluster.plan.members] == ["local-3"]


@pytest.mark.slow
def test_all_open_texts_go_on_with_their_rows(
    cluster: Cluster, carried: dict[int, list[list[int]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coordinator")
    wanted = write(cluster, PROMPTS)
    assert write(cluster, PROMPTS, Victims(cluster, "local-3")) == wanted
    assert len(said(caplog, "recovery from=mirror")) == 1
    assert not any(0 in positions for positions in carried[cluster.epoch])


@pytest.mark.slow
def test_without_the_mirror_the_text_is_computed_again(
    cluster: Cluster, carried: dict[int, list[list[int]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coordinator")
    wanted = write(cluster, PROMPTS)
    # One of them has the copy of what the other held.
    assert write(cluster, PROMPTS, Victims(cluster, "local-1", "local-2")) == wanted
    assert not said(caplog, "recovery from=mirror")
    assert carried[cluster.epoch][0][0] == 0
    assert write(cluster, PROMPTS) == wanted
    assert "one agent alone" in str(cluster.mirrors.view())


@pytest.mark.slow
def test_a_mirror_ends_with_a_migration_and_begins_anew(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coordinator")
    wanted = write(cluster, PROMPTS[:1])
    names = [AgentName("local-1"), AgentName("local-3")]
    victim = Victims(cluster, "local-3")

    def each(turn: int) -> None:
        if turn == 10:
            cluster.begin_move(cluster.make_plan(names))
            assert lag(cluster) is None
        if not cluster.moves.is_moving:
            victim(turn)

    assert write(cluster, PROMPTS[:1], each) == wanted
    assert victim.turn is not None
    assert len(said(caplog, "move moved")) == 2
    assert len(said(caplog, "recovery from=mirror")) == 1


@pytest.mark.slow
def test_boards_without_room_do_without_and_say_so_once(tmp_path: Path, endless: Path) -> None:
    site = Site(tmp_path, endless, "--exact", "-c", "8192", "--place", "spread", "--mirror")
    try:
        for name in ("pi-1", "pi-2"):
            site.agents[name] = Command(
                "--coordinator", site.endpoint, "--name", name, "--threads", "1",
                "--model-dir", endless, "--emulate-memory", "6M",
                program=AGENT,
            )  # fmt: skip
        site.until_ready("pi-1", "pi-2")
        wanted = site.ids(60)
        assert site.ids(60) == wanted
        mirror = site.status().mirror
        assert mirror is not None
        assert mirror.lag_tokens is None
        assert "no agent has room" in mirror.reason
        assert site.serve.stderr.count("no agent has room") == 1
    finally:
        site.close()
