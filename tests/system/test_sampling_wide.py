"""Draws that the best candidates cannot decide, on a vocabulary of more than all lists hold.

The random model has 1500 tokens; an agent sends its best 256.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.share import AtomRange
from agent.vocab_payload import TOP_CANDIDATES
from coordinator.cluster import Cluster
from coordinator.plan import Plan
from coordinator.sampling import SamplingOptions
from tests.system.conftest import Crew, random_model
from tests.system.sampling_oracle import check_against_oracle, penalised, use, write

COUNTS = [1, 3, 5]
VOCAB_SIZE = 1500  # 12 atoms of 128 rows
MOST_ATOMS = 10


@pytest.fixture(scope="module")
def wide(crew: Crew, models_root: Path) -> Iterator[Cluster]:
    model = random_model(models_root, "wide", "q8", vocab_size=VOCAB_SIZE)
    with crew.cluster(model, context_tokens=2048) as cluster:
        yield cluster


def test_a_temperature_that_needs_all_logits(wide: Cluster) -> None:
    options = SamplingOptions(temperature=1000.0, seed=8)
    results = []
    for n_agents in COUNTS:
        use(wide, n_agents)
        results.append(write(wide, [5, 6, 7], options, 16))
        # More steps than tokens: most were asked again for all logits.
        assert results[-1].timings.n_steps > 16 + 4
    assert [r.token_ids for r in results] == 3 * [results[0].token_ids]
    check_against_oracle(wide, results[0], options)


def hidden_prompt(wide: Cluster) -> list[int]:
    """Return a prompt of all tokens but one, which has a positive logit after it.

    The first agent, who holds most of the vocabulary, has at least 256 tokens of higher logits.
    So after a strong penalty on the prompt the best token is one that no list of best candidates
    had before.
    """
    hidden = -1
    for _ in range(10):
        prompt = [i for i in range(VOCAB_SIZE) if i != hidden]
        logits = wide.logits(prompt, chunk_rows=64)[-1]
        ranked = sorted(range(128 * MOST_ATOMS), key=lambda i: -logits[i])
        if hidden in ranked[TOP_CANDIDATES:] and logits[hidden] > 0.1:
            return prompt
        # Another one is left out: as one of 1500 tokens it hardly changes the logits.
        hidden = ranked[TOP_CANDIDATES + 10]
    raise AssertionError("no prompt found that hides its best continuation")


def with_uneven_vocabulary(plan: Plan) -> Plan:
    """Return a plan of three agents whose first one holds most of the vocabulary."""
    vocab = [(0, MOST_ATOMS), (MOST_ATOMS, 1), (MOST_ATOMS + 1, 1)]
    stage = plan.stages[0]
    members = tuple(
        msgspec.structs.replace(member, vocab=(AtomRange(*held),))
        for member, held in zip(stage.members, vocab, strict=True)
    )
    return msgspec.structs.replace(plan, stages=(msgspec.structs.replace(stage, members=members),))


@pytest.mark.slow
def test_a_penalty_that_hides_the_best_token_from_every_list(wide: Cluster) -> None:
    wide.install(with_uneven_vocabulary(wide.make_plan(wide.agent_names()[:3])))
    prompt = hidden_prompt(wide)
    unpenalised = wide.logits(prompt, chunk_rows=64)[-1]
    options = SamplingOptions(repeat_penalty=100.0, repeat_last_n=4096)
    wanted = int(np.argmax(penalised(unpenalised, prompt, options)))
    assert wanted not in prompt
    assert write(wide, prompt, options, 1).token_ids == [wanted]
    use(wide, 1)
    assert write(wide, prompt, options, 1).token_ids == [wanted]
