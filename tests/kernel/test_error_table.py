"""The tables of docs/kernels.md on a shape that takes no time: their figures stay what they are."""

from dataclasses import replace
from pathlib import Path

import pytest
from numba import config

from kernels.jit import JIT_DISABLED
from kernels.layout import Geometry, WeightFormat
from tests.kernel.error_table import (
    ALL,
    Arithmetic,
    arithmetic_errors,
    desired,
    error_of,
    qkv_rows,
    rows_of,
    stories_errors,
)
from tests.kernel_models import make_model

STORIES = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories260K"

SHAPE = Geometry(
    hidden_size=256, n_layers=2, n_heads=8, n_kv_heads=2, head_dim=32, n_columns=200,
    vocab_size=300, fmt=WeightFormat.F32, norm_eps=1e-5,
)  # fmt: skip
N_TOKENS = 5 if JIT_DISABLED else 70

# Largest and mean error of a place's numbers in root mean squares of their rows: two to four times
# what was measured.
EXACT = {"attention": (1e-5, 1e-6), "mlp": (1e-5, 1e-6), "logits": (3e-5, 4e-6)}
F16_KV = {"attention": (1e-2, 1e-3), "mlp": (1e-5, 1e-6), "logits": (2e-2, 2e-3)}
INT8_KV = {"attention": (0.2, 0.03), "mlp": (1e-5, 1e-6), "logits": (0.3, 0.04)}
INT8 = {"attention": (0.2, 0.03), "mlp": (0.2, 0.03), "logits": (0.6, 0.08)}

# Those kernels that test_stage needs too; the others take seconds to compile.
QUICK = [
    how for how in ALL
    if how.fmt in (WeightFormat.F32, WeightFormat.Q4) and how.kv == ("f16" if how.int8 else "f32")
]  # fmt: skip
OTHERS = [how for how in ALL if how not in QUICK]
if JIT_DISABLED or config.BOUNDSCHECK:
    QUICK = QUICK[-1:]


def name(how: Arithmetic) -> str:
    return f"{how.fmt.name}-{'int8' if how.int8 else 'f32'}-kv-{how.kv}"


def bounds(how: Arithmetic) -> dict[str, tuple[float, float]]:
    return INT8 if how.int8 else {"f32": EXACT, "f16": F16_KV, "int8": INT8_KV}[how.kv]


@pytest.mark.parametrize(
    "how", [*QUICK, *(pytest.param(how, marks=pytest.mark.slow) for how in OTHERS)], ids=name
)
def test_kernels_are_near_an_oracle_that_rounds_nothing(how: Arithmetic) -> None:
    model = make_model(replace(SHAPE, fmt=how.fmt))
    wanted = desired(model, rows_of(SHAPE, N_TOKENS))
    for place, error in arithmetic_errors(model, how, wanted):
        largest, mean = bounds(how)[place]
        assert error.largest_of_rms < largest, place
        assert error.mean_of_rms < mean, place


@pytest.mark.slow
@pytest.mark.parametrize("how", [how for how in ALL if how.kv == "f32"], ids=name)
def test_products_alone(how: Arithmetic) -> None:
    model = make_model(replace(SHAPE, fmt=how.fmt))
    x = rows_of(SHAPE, N_TOKENS)
    error = error_of(qkv_rows(model, how, x), desired(model, x)["qkv"])
    assert error.largest_of_rms < (0.06 if how.int8 else 5e-6)
    assert error.mean_of_rms < (0.01 if how.int8 else 5e-7)


@pytest.mark.slow
@pytest.mark.skipif(not STORIES.is_dir(), reason=f"stories260K is not at {STORIES}")
def test_logits_of_a_trained_model() -> None:
    mean_bounds = {WeightFormat.F32: 1e-3, WeightFormat.F16: 1e-3, WeightFormat.Q8: 0.03}
    errors = dict(stories_errors(STORIES))
    assert list(errors) == ALL
    assert errors[Arithmetic(WeightFormat.F32, False, "f32")].largest < 1e-4
    for how, error in errors.items():
        bound = 0.03 if how.kv == "int8" else 0.0
        assert error.mean_of_rms < max(bound, mean_bounds.get(how.fmt, 0.3)), how
