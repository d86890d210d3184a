"""Every family through the whole distributed path, against logits recorded from transformers.

tests/data holds tiny random models: llama (rope linear and llama3), mistral, qwen2 (biases) and
qwen3 (q/k norm); f32, f16, bf16; single and sharded files; head_dim 8, 48 and 80; H/G 1, 4 and
7; F no multiple of 32; odd vocabularies; tied and untied heads.
"""

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from agent.ids import ModelId
from coordinator.cluster import Cluster
from coordinator.random_plan import random_plan
from tests.system.conftest import DATA, Crew, Models

MODELS = sorted(path.name for path in DATA.iterdir() if (path / "reference.npz").is_file())
MAX_ERROR = 1e-3


@pytest.fixture(scope="module", params=MODELS)
def cluster(request: pytest.FixtureRequest, crew: Crew, converted: Models) -> Iterator[Cluster]:
    """A cluster in exact mode for each family in turn."""
    with crew.cluster(converted(str(DATA / request.param), "f32")) as cluster:
        yield cluster


@pytest.fixture
def reference(request: pytest.FixtureRequest) -> dict[str, npt.NDArray[np.float32]]:
    """prompt_ids, greedy_ids and the logits after each of them, as transformers gave them."""
    name = request.node.callspec.params["cluster"]
    with np.load(DATA / name / "reference.npz") as recorded:
        return {key: recorded[key] for key in recorded.files}


def check(cluster: Cluster, reference: dict[str, npt.NDArray[np.float32]]) -> None:
    prompt, greedy = (reference[key].tolist() for key in ("prompt_ids", "greedy_ids"))
    found = cluster.logits(prompt + greedy)
    assert np.abs(found - reference["logits"]).max() < MAX_ERROR
    generation = cluster.generate(prompt_ids=prompt, max_tokens=len(greedy))
    assert [token.id for token in generation] == greedy
    assert generation.result().finish_reason == "length"


def test_all_families_are_here() -> None:
    assert {"llama-linear", "llama-llama3", "mistral", "qwen2", "qwen3"} <= set(MODELS)


@pytest.mark.parametrize("n_agents", ["1", "2", "3", "more than KV heads"])
def test_planned(
    cluster: Cluster, reference: dict[str, npt.NDArray[np.float32]], n_agents: str
) -> None:
    n = int(n_agents) if n_agents.isdigit() else cluster.directory.geometry.n_kv_heads + 1
    cluster.install(cluster.make_plan(cluster.agent_names()[:n]))
    assert cluster.plan is not None
    assert len(cluster.plan.members) == n
    check(cluster, reference)


@pytest.mark.parametrize("seed", range(2))
def test_placed_at_random(
    cluster: Cluster, reference: dict[str, npt.NDArray[np.float32]], seed: int
) -> None:
    rng = random.Random(seed)
    names = cluster.agent_names()
    plan = random_plan(
        rng,
        ModelId(cluster.directory.model_id),
        cluster.directory.geometry,
        rng.sample(names, rng.randint(2, len(names))),
        wire="f32",
        kv="f32",
    )
    cluster.install(plan)
    check(cluster, reference)


def test_what_shares_a_step_does_not_matter(
    cluster: Cluster, reference: dict[str, npt.NDArray[np.float32]]
) -> None:
    cluster.install(cluster.make_plan(cluster.agent_names()[:3]))
    text = [*reference["prompt_ids"].tolist(), *reference["greedy_ids"].tolist()]
    alone = cluster.logits(text, chunk_rows=1)
    for chunk_rows in (5, 64):
        assert (cluster.logits(text, chunk_rows) == alone).all()
