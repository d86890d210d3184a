"""A real pretrained model over real processes, against texts and logits recorded elsewhere."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.ids import ModelId
from coordinator.cluster import Cluster
from coordinator.plan import Plan
from coordinator.random_plan import random_plan
from tests.system.conftest import Crew, Models

COUNTS = [1, 2, 3, 5, 9]


@pytest.fixture(scope="module")
def cluster(stories: Path, crew: Crew, converted: Models) -> Iterator[Cluster]:
    """Nine agents that hold whatever plan a test installs, in exact mode."""
    with crew.cluster(converted(str(stories / "hf"), "f32")) as cluster:
        assert len(cluster.agent_names()) == max(COUNTS)
        yield cluster


def placed_at_random(cluster: Cluster, seed: int) -> Plan:
    rng = random.Random(seed)
    names = cluster.agent_names()[: rng.choice(COUNTS)]
    model_id = ModelId(cluster.directory.model_id)
    plan = random_plan(rng, model_id, cluster.directory.geometry, names)
    return msgspec.structs.replace(plan, wire="f32", kv="f32")


def references(stories: Path) -> list[dict[str, list[int]]]:
    loaded: list[dict[str, list[int]]] = json.loads((stories / "reference_greedy.json").read_text())
    return loaded


def check_greedy(cluster: Cluster, stories: Path, n_tokens: int) -> None:
    for reference in references(stories):
        wanted = reference["greedy_new_ids"][:n_tokens]
        generation = cluster.generate(prompt_ids=reference["prompt_ids"], max_tokens=n_tokens)
        found = [token.id for token in generation if token.id is not None]
        assert found == wanted, reference["prompt"]


def check_logits(cluster: Cluster, stories: Path) -> None:
    recorded = np.load(stories / "reference_logits_f64.npz")
    for i in range(3):
        found = cluster.logits([int(t) for t in recorded[f"ids_{i}"]])
        assert np.abs(found - recorded[f"logits_{i}"]).max() < 1e-3


def test_the_empty_prompt_gives_the_text_that_llama2c_expects(
    cluster: Cluster, stories: Path
) -> None:
    wanted = (stories / "karpathy_expected_stdout_200.txt").read_text()
    generation = cluster.generate("", max_tokens=200)
    assert "".join(token.text for token in generation) == wanted
    result = generation.result()
    assert len(result.token_ids) == 200
    assert result.prompt_token_ids == [1]
    assert result.finish_reason == "length"


@pytest.mark.parametrize("n_agents", COUNTS)
def test_greedy_and_logits_for_every_number_of_agents(
    cluster: Cluster, stories: Path, n_agents: int
) -> None:
    cluster.install(cluster.make_plan(cluster.agent_names()[:n_agents]))
    assert cluster.plan is not None
    assert len(cluster.plan.members) == n_agents
    check_greedy(cluster, stories, 40)
    check_logits(cluster, stories)


@pytest.mark.parametrize("seed", range(4))
def test_random_placements(cluster: Cluster, stories: Path, seed: int) -> None:
    cluster.install(placed_at_random(cluster, seed))
    check_greedy(cluster, stories, 30)
    check_logits(cluster, stories)


@pytest.mark.slow
@pytest.mark.parametrize("n_agents", COUNTS)
def test_every_reference_token_for_every_number_of_agents(
    cluster: Cluster, stories: Path, n_agents: int
) -> None:
    cluster.install(cluster.make_plan(cluster.agent_names()[:n_agents]))
    check_greedy(cluster, stories, 200)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_every_reference_token_for_twenty_random_placements(
    cluster: Cluster, stories: Path, seed: int
) -> None:
    cluster.install(placed_at_random(cluster, seed))
    check_greedy(cluster, stories, 200)
    check_logits(cluster, stories)
