"""Quantised models under several placements, against the oracle on dequantised weights.

In exact mode weights are dequantised in registers and everything is float32 arithmetic, so only
rounding separates a cluster from the float64 oracle that has the same numbers in its matrices. In
default mode (f16 wire and KV) q8 and q4 meet activations of 8 bits. Errors are shares of the spread
of a row's logits (largest minus smallest). Measured over all these models, formats and placements:
exact mode at most 8.5e-7; default mode f16 1.5e-3, q8 and q4 at most 3.9e-2 and on average 3.6e-3
or less, which is what the oracle with 8-bit activations has too (3.3e-2 and 3.6e-3).
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from agent.ids import ModelId
from coordinator.cluster import Cluster
from coordinator.plan import Plan
from coordinator.random_plan import random_plan
from tests.system.conftest import DATA, Crew, Models
from tests.system.oracle import oracle_logits, oracle_model
from weights.manifest import DType

MAX_ERROR_SHARE_EXACT = 1e-5
MAX_ERROR_SHARE_DEFAULT = 5e-3
DTYPES: list[DType] = ["f16", "q8", "q4"]
N_TOKENS = 80  # more than one page of KV

F64 = npt.NDArray[np.float64]


# f16 needs two more specialisations, which take long to compile.
CASES = [
    pytest.param((model, dtype), marks=[pytest.mark.slow] * (dtype == "f16"), id=f"{model}-{dtype}")
    for model in ("stories260K", "qwen3")
    for dtype in DTYPES
]


@pytest.fixture(scope="module", params=CASES)
def cluster(request: pytest.FixtureRequest, crew: Crew, converted: Models) -> Iterator[Cluster]:
    """A cluster in exact mode for each model and format in turn."""
    name, dtype = request.param
    source = DATA / name
    if name == "stories260K":
        stories: Path = request.getfixturevalue("stories")
        source = stories / "hf"
    with crew.cluster(converted(str(source), dtype)) as cluster:
        assert cluster.directory.manifest.dtype == dtype
        yield cluster


@pytest.fixture(scope="module")
def text(cluster: Cluster) -> list[int]:
    """Token ids that lie all over the vocabulary."""
    vocab_size = cluster.directory.geometry.vocab_size
    return [int(i) for i in np.random.default_rng(1).integers(3, vocab_size, N_TOKENS)]


@pytest.fixture(scope="module")
def wanted(cluster: Cluster, text: list[int]) -> F64:
    return oracle_logits(oracle_model(cluster.directory), cluster.directory, text)


def plans(cluster: Cluster, counts: list[int], n_random: int) -> Iterator[Plan]:
    names = cluster.agent_names()
    for n in counts:
        yield cluster.make_plan(names[:n])
    rng = random.Random(7)
    model_id = ModelId(cluster.directory.model_id)
    for _ in range(n_random):
        some = rng.sample(names, rng.randint(2, len(names)))
        yield random_plan(rng, model_id, cluster.directory.geometry, some, wire="f32", kv="f32")


def error_share(found: npt.NDArray[Any], wanted: F64) -> float:
    error: F64 = np.abs(found - wanted).max(axis=1) / np.ptp(wanted, axis=1)
    return float(error.max())


def mean_share(found: npt.NDArray[Any], wanted: F64) -> float:
    return float((np.abs(found - wanted).mean(axis=1) / np.ptp(wanted, axis=1)).mean())


def test_exact_mode_is_the_oracle_up_to_rounding(
    cluster: Cluster, text: list[int], wanted: F64
) -> None:
    for plan in plans(cluster, [1, 2, 3, 6], n_random=3):
        cluster.install(plan)
        assert error_share(cluster.logits(text), wanted) < MAX_ERROR_SHARE_EXACT


def test_default_mode_stays_near_the_oracle_with_f16_keys_and_values(
    cluster: Cluster, text: list[int]
) -> None:
    """What 8-bit activations cost is known from the oracle; nothing else may cost much."""
    unrounded = oracle_model(cluster.directory, kv_dtype=np.float16)
    wanted = oracle_logits(unrounded, cluster.directory, text)
    worst, mean = MAX_ERROR_SHARE_DEFAULT, MAX_ERROR_SHARE_DEFAULT
    if cluster.directory.manifest.dtype in ("q8", "q4"):
        rounded = oracle_logits(replace(unrounded, int8=True), cluster.directory, text)
        worst, mean = 2 * error_share(rounded, wanted), 1.2 * mean_share(rounded, wanted)
    for plan in plans(cluster, [1, 3], n_random=1):
        cluster.install(msgspec.structs.replace(plan, wire="f16", kv="f16"))
        found = cluster.logits(text)
        assert error_share(found, wanted) < worst
        assert mean_share(found, wanted) < mean
