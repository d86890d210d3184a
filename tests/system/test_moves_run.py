"""Live migration with real processes: texts go on, token by token, while heads move."""

import itertools
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.ids import AgentName, ModelId
from coordinator.cluster import Cluster
from coordinator.installer import N_CONTEXTS
from coordinator.migration_events import Finished, Outcome
from coordinator.plan import Plan
from coordinator.random_plan import random_plan
from coordinator.results import Token
from kernels.errors import RemoteError

N_TOKENS = 150


@pytest.fixture(scope="module")
def cluster(endless: Path) -> Iterator[Cluster]:
    with Cluster(endless, local=3, exact=True, context_tokens=512) as cluster:
        yield cluster


def write(cluster: Cluster, plans: dict[int, Plan], n_tokens: int = N_TOKENS) -> list[int]:
    """Write a text and begin to move to a plan at some of its tokens; return the tokens."""
    ids = []
    for i, token in enumerate(cluster.generate(prompt_ids=[5, 6, 7], max_tokens=n_tokens)):
        assert token.id is not None
        ids.append(token.id)
        if i in plans:
            cluster.begin_move(plans[i])
    return ids


def scattered(cluster: Cluster, seed: int, *names: str) -> Plan:
    """A plan that puts atoms anywhere, on these agents."""
    directory = cluster.directory
    return random_plan(
        random.Random(seed), ModelId(directory.model_id), directory.geometry,
        [AgentName(name) for name in names], wire="f32", kv="f32", context_tokens=512,
    )  # fmt: skip


def assert_fine(ended: Finished | None) -> None:
    assert ended is None or ended.outcome is Outcome.MOVED, ended


def settle(cluster: Cluster) -> None:
    while cluster.moves.is_moving:
        assert_fine(cluster.poll_move())
        cluster.control.wait_reports(0.05)


def test_a_text_goes_on_while_its_heads_move(cluster: Cluster) -> None:
    wanted = write(cluster, {})
    everyone = ("local-1", "local-2", "local-3")
    before = cluster.epoch
    assert write(cluster, {20: scattered(cluster, 1, *everyone)}) == wanted
    settle(cluster)
    assert cluster.epoch == before + 1
    # Fewer members, then other ones.
    assert write(cluster, {5: scattered(cluster, 2, *everyone[:2])}) == wanted
    settle(cluster)
    assert write(cluster, {5: scattered(cluster, 3, "local-3")}) == wanted
    settle(cluster)
    assert cluster.epoch == before + 3
    assert write(cluster, {}) == wanted


@pytest.mark.slow
def test_a_move_in_the_middle_of_a_long_prompt(cluster: Cluster) -> None:
    prompt = [random.Random(1).randrange(5, 60) for _ in range(300)]

    def words() -> list[int | None]:
        return [token.id for token in cluster.generate(prompt_ids=prompt, max_tokens=20)]

    wanted, before, n_checks = words(), cluster.epoch, 0

    def between_chunks() -> None:
        nonlocal n_checks
        n_checks += 1
        if n_checks == 3:
            cluster.begin_move(scattered(cluster, 11, "local-1", "local-2"))
            settle(cluster)

    cluster.interrupt = between_chunks
    try:
        assert words() == wanted
    finally:
        cluster.interrupt = lambda: None
    assert n_checks > 4
    assert cluster.epoch == before + 1
    assert words() == wanted


def alternately(texts: list[Iterator[Token]], each: Callable[[int], None]) -> list[list[int]]:
    """Read texts token by token in turn until all have ended; `each` is called in every turn."""
    ids: list[list[int]] = [[] for _ in texts]
    for turn in itertools.count():
        each(turn)
        tokens = [next(text, None) for text in texts]
        if not any(tokens):
            return ids
        for token, of in zip(tokens, ids, strict=True):
            if token is not None and token.id is not None:
                of.append(token.id)
    raise AssertionError("unreachable")


PROMPTS = [[5, 6, 7], [9] * 70, [11, 12]]


def alone(cluster: Cluster, n_tokens: int) -> list[list[int]]:
    """What each prompt is followed by when nothing else goes on."""
    texts = [cluster.generate(prompt_ids=prompt, max_tokens=n_tokens) for prompt in PROMPTS]
    return [[token.id for token in text if token.id is not None] for text in texts]


def together(cluster: Cluster, n_tokens: int) -> list[Iterator[Token]]:
    return [cluster.generate(prompt_ids=prompt, max_tokens=n_tokens) for prompt in PROMPTS]


@pytest.mark.slow
def test_texts_that_are_written_in_turn_move_and_a_closed_one_stays_behind(
    cluster: Cluster,
) -> None:
    wanted = alone(cluster, 60)
    given_up = cluster.generate(prompt_ids=[8] * 20, max_tokens=80)
    next(given_up)
    plans = {5: scattered(cluster, 21, "local-2", "local-3"), 30: scattered(cluster, 22, "local-1")}

    def each(turn: int) -> None:
        if turn in plans:
            if cluster.moves.is_moving:
                settle(cluster)
            cluster.begin_move(plans[turn])
        if turn == 6:
            given_up.close()

    assert alternately(together(cluster, 60), each) == wanted
    settle(cluster)
    assert alone(cluster, 60) == wanted
    # Every context is free again: so many may be open at once, and no more.
    many = [cluster.generate(prompt_ids=[5], max_tokens=9) for _ in range(N_CONTEXTS)]
    assert all(next(text, None) for text in many)
    for text in many:
        text.close()


def kill(cluster: Cluster, name: str) -> None:
    os.kill(cluster.local_pids[AgentName(name)], signal.SIGKILL)


def begin_half(cluster: Cluster, plan: Plan) -> None:
    """Begin to move; return when some texts have changed over, but not the one opened last."""
    cluster.begin_move(plan)
    follower = cluster._texts.follower
    assert follower is not None
    texts = cluster._texts.here()
    # As in the middle of a step.
    follower.begins(texts[-1].kv_id)
    former = texts[-1].engine
    while any(text.engine is former for text in texts[:-1]):
        assert cluster.poll_move() is None
        cluster.control.wait_reports(0.05)
    assert texts[-1].engine is former


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("lost", ["source", "target"])
def test_an_agent_killed_during_a_move_of_several_texts(
    endless: Path, lost: str, half: bool
) -> None:
    with Cluster(endless, local=3, exact=True, context_tokens=512) as cluster:
        wanted = alone(cluster, 80)
        cluster.install(scattered(cluster, 31, "local-1", "local-2"))
        plan = scattered(cluster, 32, "local-2", "local-3")
        epochs = []

        def each(turn: int) -> None:
            if turn == 20:
                begin_half(cluster, plan) if half else cluster.begin_move(plan)
                kill(cluster, "local-1" if lost == "source" else "local-3")
            epochs.append(cluster.epoch)

        assert alternately(together(cluster, 80), each) == wanted
        settle_somehow(cluster)
        members = {member.agent for member in cluster.plan.members} if cluster.plan else set()
        assert AgentName("local-1" if lost == "source" else "local-3") not in members
        # And once more, with whoever is left.
        move = scattered(cluster, 33, "local-2")
        assert alternately(
            together(cluster, 80), lambda turn: cluster.begin_move(move) if turn == 9 else None
        ) == wanted  # fmt: skip
        settle_somehow(cluster)


def settle_somehow(cluster: Cluster) -> None:
    while cluster.moves.is_moving:
        cluster.poll_move()
        cluster.control.wait_reports(0.05)


@pytest.mark.slow
def test_all_but_one_are_freed_and_then_killed_one_after_the_other(endless: Path) -> None:
    with Cluster(endless, local=3, exact=True, context_tokens=512) as cluster:
        wanted = alone(cluster, 90)

        def each(turn: int) -> None:
            if turn == 10:
                cluster.begin_move(scattered(cluster, 41, "local-2"))
            if turn == 40:
                settle(cluster)
            if turn in (50, 60):
                kill(cluster, {50: "local-1", 60: "local-3"}[turn])

        epoch = cluster.epoch
        assert alternately(together(cluster, 90), each) == wanted
        # Nobody who was killed held anything.
        assert cluster.epoch == epoch + 1


@pytest.mark.slow
def test_one_agent_after_the_other_is_killed_until_the_last_ends_the_texts(endless: Path) -> None:
    with Cluster(endless, local=3, exact=True, context_tokens=512) as cluster:
        wanted = alone(cluster, 90)

        def each(turn: int) -> None:
            if turn in (20, 50):
                kill(cluster, {20: "local-2", 50: "local-1"}[turn])

        assert alternately(together(cluster, 90), each) == wanted
        texts = together(cluster, 90)
        next(texts[0])
        kill(cluster, "local-3")
        for text in texts:
            with pytest.raises(RemoteError, match="local-3"):
                list(text)


@pytest.mark.slow
def test_a_plan_that_is_installed_during_a_move_ends_it(cluster: Cluster) -> None:
    wanted = alone(cluster, 40)
    text = cluster.generate(prompt_ids=PROMPTS[0], max_tokens=40)
    ids = [next(text).id for _ in range(10)]
    cluster.begin_move(scattered(cluster, 51, "local-1", "local-2"))
    plan = scattered(cluster, 52, "local-2", "local-3")
    cluster.install(plan, end_texts=False)
    assert not cluster.moves.is_moving
    assert [*ids, *(token.id for token in text)] == wanted[0]
    assert cluster.plan == plan
    cluster.begin_move(scattered(cluster, 53, "local-1"))
    assert alone(cluster, 40) == wanted
    settle(cluster)
    assert alone(cluster, 40) == wanted
