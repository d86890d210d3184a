"""Sampling through the real path: placement does not matter, and a NumPy oracle agrees."""

from collections.abc import Iterator

import pytest

from coordinator.cluster import Cluster
from coordinator.results import Result
from coordinator.sampling import SamplingOptions
from tests.system.conftest import Crew
from tests.system.sampling_oracle import check_against_oracle, use, write
from weights.demo import demo_path

COUNTS = [1, 3, 5]
N_TOKENS = 20

OPTIONS = {
    "temperature": SamplingOptions(temperature=1.0, seed=1),
    "hot": SamplingOptions(temperature=3.0, seed=2),
    "top-k": SamplingOptions(temperature=1.5, top_k=7, seed=3),
    "top-p": SamplingOptions(temperature=1.2, top_p=0.8, seed=4),
    "min-p": SamplingOptions(temperature=1.5, min_p=0.05, seed=5),
    "penalty": SamplingOptions(temperature=0.8, repeat_penalty=1.4, seed=6),
    "greedy penalty": SamplingOptions(repeat_penalty=1.3, repeat_last_n=20),
    "everything": SamplingOptions(
        temperature=1.3, top_k=300, top_p=0.95, min_p=0.001, repeat_penalty=1.2,
        repeat_last_n=32, seed=2**64 - 1,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(crew: Crew) -> Iterator[Cluster]:
    with crew.cluster(demo_path()) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def demo_texts(demo: Cluster) -> dict[tuple[str, int], Result]:
    texts = {}
    for n_agents in COUNTS:
        use(demo, n_agents)
        for name, options in OPTIONS.items():
            texts[name, n_agents] = write(demo, demo_prompt(demo), options, N_TOKENS)
    return texts


def demo_prompt(demo: Cluster) -> list[int]:
    assert demo.tokenizer is not None
    return demo.tokenizer.encode("One day")


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_seed_gives_the_same_words_on_any_number_of_agents(
    demo_texts: dict[tuple[str, int], Result], name: str
) -> None:
    results = [demo_texts[name, n] for n in COUNTS]
    assert len(results[0].token_ids) > 5
    assert results[0].text
    for result in results[1:]:
        assert (result.token_ids, result.text) == (results[0].token_ids, results[0].text)


def test_options_and_seeds_change_the_words(
    demo: Cluster, demo_texts: dict[tuple[str, int], Result]
) -> None:
    texts = [tuple(demo_texts[name, 1].token_ids) for name in OPTIONS]
    assert len(set(texts)) == len(texts)
    other = SamplingOptions(temperature=1.0, seed=99)
    assert tuple(write(demo, demo_prompt(demo), other, N_TOKENS).token_ids) not in texts


@pytest.mark.parametrize("name", OPTIONS)
def test_the_words_are_those_of_the_oracle(
    demo: Cluster, demo_texts: dict[tuple[str, int], Result], name: str
) -> None:
    check_against_oracle(demo, demo_texts[name, 3], OPTIONS[name])
