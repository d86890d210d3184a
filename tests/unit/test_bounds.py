"""Bounds of partial sums against the oracle: never broken, and not far above what can happen."""

from dataclasses import replace

import numpy as np
import pytest

from kernels.layout import COLUMNS_PER_ATOM, WeightFormat
from tests import naive
from tests.kernel_models import PackedModel, geometry, make_model
from weights.bounds import attention_bound, mlp_bound

CASES = [
    {},
    {"qkv_bias": True},
    {"qk_norm": True, "fmt": WeightFormat.Q8},
    {"fmt": WeightFormat.Q4, "n_columns": 70},
]


def blobs(model: PackedModel, offsets: list[int], n_bytes: int) -> list[np.ndarray]:
    return [model.store[offset : offset + n_bytes] for offset in offsets]


def norms(model: PackedModel) -> np.ndarray:
    return blobs(model, model.norms[:1], model.geometry.layer_norms_bytes)[0]


def residuals(model: PackedModel) -> list[np.ndarray]:
    """Contexts that come as near to the bounds as we know how to."""
    g, layer, rng = model.geometry, model.naive.layers[0], np.random.default_rng(3)
    wild = rng.standard_normal((20, g.hidden_size)) ** 5 * 1e4
    # Along the rows of W_v and of the gate, as their norms see them, a single token each.
    along = [*(layer.v * layer.attn_norm), *(layer.gate * layer.mlp_norm)]
    return [wild, *(1e3 * row[None] for row in along)]


@pytest.mark.parametrize("changes", CASES)
@pytest.mark.parametrize("chosen", [[0], [0, 1]])
def test_no_partial_sum_exceeds_its_bound(changes: dict[str, object], chosen: list[int]) -> None:
    g = geometry(**changes)
    model = make_model(g)
    layer = model.naive.layers[0]
    groups = blobs(model, [model.groups[0][i] for i in chosen], g.head_group_bytes)
    columns = blobs(model, [model.columns[0][i] for i in chosen], g.column_bytes)
    real = [
        c
        for atom in chosen
        for c in range(atom * COLUMNS_PER_ATOM, min((atom + 1) * COLUMNS_PER_ATOM, g.n_columns))
    ]
    both = [model.naive, replace(model.naive, int8=True)]
    cases = [(oracle, x) for oracle in both for x in residuals(model)]
    attention = max(np.abs(naive.attention(m, layer, x, chosen)).max() for m, x in cases)
    mlp = max(np.abs(naive.mlp(m, layer, x, real)).max() for m, x in cases)
    assert attention <= attention_bound(g, norms(model), groups) < 10 * attention
    assert mlp <= mlp_bound(g, norms(model), columns) < 60 * mlp
