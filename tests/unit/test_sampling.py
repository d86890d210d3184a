"""Probabilities, draws and options of the sampler against an oracle written from the rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.sampling import (
    SamplingOptions,
    choose_from_logits,
    probabilities,
    uniform,
)
from kernels.errors import PromptError


def oracle(logits: np.ndarray, o: SamplingOptions) -> np.ndarray:
    """The rules, one after the other, on a dictionary of tokens: nothing shared with the code."""
    logits = logits.astype(np.float64)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if o.temperature == 0:
        return np.eye(len(logits))[order[0]]
    temperature = float(np.float32(o.temperature))
    if o.top_k:
        order = order[: o.top_k]
    weight = {i: float(np.exp((logits[i] - logits[order[0]]) / temperature)) for i in order}
    total = sum(weight.values())
    kept, mass = [], 0.0
    for i in order:
        if kept and mass >= o.top_p * total * (1 - 1e-12):
            break
        kept.append(i)
        mass += weight[i]
    kept = [i for i in kept if weight[i] >= o.min_p * weight[kept[0]]]
    result = np.zeros(len(logits))
    for i in kept:
        result[i] = weight[i] / sum(weight[j] for j in kept)
    return result


OPTIONS = [
    SamplingOptions(),
    SamplingOptions(temperature=1.0),
    SamplingOptions(temperature=0.7),
    SamplingOptions(temperature=1.3, top_k=1),
    SamplingOptions(temperature=1.0, top_k=40),
    SamplingOptions(temperature=1.0, top_k=10_000),
    SamplingOptions(temperature=1.0, top_p=0.9),
    SamplingOptions(temperature=1.0, top_p=1e-9),
    SamplingOptions(temperature=1.0, min_p=0.05),
    SamplingOptions(temperature=1.0, min_p=1.0),
    SamplingOptions(temperature=0.8, top_k=50, top_p=0.95, min_p=0.02),
    SamplingOptions(temperature=100.0, top_k=7, top_p=0.5),
    SamplingOptions(temperature=0.001),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("n_vocab", [1, 2, 5, 131, 1000])
def test_probabilities_equal_the_oracle(options: SamplingOptions, n_vocab: int) -> None:
    rng = np.random.default_rng(n_vocab)
    logits = (4 * rng.standard_normal(n_vocab)).astype(np.float32)
    # Ties must not matter: the lower id comes first.
    logits[n_vocab // 2] = logits[0]
    np.testing.assert_allclose(
        probabilities(logits, options), oracle(logits, options), rtol=1e-9, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_draws_follow_the_probabilities(options: SamplingOptions) -> None:
    rng = np.random.default_rng(3)
    logits = (3 * rng.standard_normal(97)).astype(np.float32)
    wanted = oracle(logits, options)
    n_draws = 4000
    # An even grid of u instead of chance: each token's count is exact to one draw.
    drawn = [choose_from_logits(logits, options, (i + 0.5) / n_draws) for i in range(n_draws)]
    found = np.bincount(drawn, minlength=97) / n_draws
    np.testing.assert_allclose(found, wanted, atol=1.5 / n_draws)


def test_ties_break_by_lowest_id() -> None:
    logits = np.array([1.0, 3.0, -0.0, 3.0, 0.0], np.float32)
    assert choose_from_logits(logits, SamplingOptions(), 0.9) == 1
    one = SamplingOptions(temperature=1.0, top_k=1)
    assert choose_from_logits(logits, one, 0.9) == 1
    # -0.0 equals 0.0, so id 2 precedes id 4.
    three = SamplingOptions(temperature=1.0, top_k=4)
    assert choose_from_logits(logits, three, 0.999999) == 2


@given(u=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 1000))
def test_a_drawn_token_always_has_probability(u: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (10 * rng.standard_normal(rng.integers(1, 300))).astype(np.float32)
    options = SamplingOptions(
        temperature=float(rng.uniform(0.01, 3)),
        top_k=int(rng.integers(0, 300)),
        top_p=float(rng.uniform(0.01, 1)),
        min_p=float(rng.uniform(0, 1)),
    )
    assert oracle(logits, options)[choose_from_logits(logits, options, u)] > 0


def test_extreme_u_stays_inside() -> None:
    logits = np.array([0.1, 0.2, 0.3], np.float32)
    options = SamplingOptions(temperature=1.0)
    assert choose_from_logits(logits, options, 0.0) == 2
    assert choose_from_logits(logits, options, np.nextafter(1.0, 0.0)) == 0


def test_uniform_is_a_function_of_seed_and_index() -> None:
    # Recorded once: a change would change every seeded text.
    assert uniform(0, 0) == 0.011546754286331562
    assert uniform(42, 7) == 0.4074136540795371
    assert uniform(2**64 - 1, 123456) == 0.2735225580154991
    numbers = [uniform(seed, i) for seed in range(20) for i in range(100)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= u < 1 for u in numbers)
    assert np.mean(numbers) == pytest.approx(0.5, abs=0.03)
    histogram = np.histogram(numbers, 10, (0, 1))[0]
    assert histogram.min() > 150


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_uniform_takes_every_seed(seed: int) -> None:
    assert 0 <= uniform(seed, 2**40) < 1


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            {"temperature": -1.0},
            "temperature is -1.0; it must be 0 (greedy) or 0.001 to 1000",
        ),
        (
            {"temperature": float("nan")},
            "temperature is nan; it must be 0 (greedy) or 0.001 to 1000",
        ),
        (
            {"temperature": float("inf")},
            "temperature is inf; it must be 0 (greedy) or 0.001 to 1000",
        ),
        ({"top_k": -1}, "top-k is -1; it must be 0 (all tokens) or more"),
        ({"top_p": 0.0}, "top-p is 0.0; it must be above 0 and at most 1 (all tokens)"),
        ({"top_p": 1.1}, "top-p is 1.1; it must be above 0 and at most 1 (all tokens)"),
        ({"min_p": 1.5}, "min-p is 1.5; it must be 0 (all tokens) to 1"),
        ({"repeat_penalty": 0.0}, "repeat penalty is 0.0; it must be 0.01 to 100; 1 means none"),
        ({"repeat_last_n": 5000}, "repeat-last-n is 5000; it must be 0 to 4096 tokens"),
        ({"seed": -1}, "seed is -1; it must be 0 to 2^64 - 1"),
        ({"seed": 1 << 64}, f"seed is {1 << 64}; it must be 0 to 2^64 - 1"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, float], text: str) -> None:
    with pytest.raises(PromptError) as e:
        SamplingOptions(**wrong)
    assert str(e.value) == text
