"""What StageKernels refuses to be built from."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernels.aligned import aligned_zeros
from kernels.errors import InputError
from kernels.paging import page_elements
from kernels.pool import Pool
from kernels.stage import StageKernels
from tests.kernel_models import PackedModel, geometry, make_model


@pytest.fixture(scope="module")
def model() -> PackedModel:
    return make_model(geometry())


def build(model: PackedModel, **changes: Any) -> StageKernels:
    atoms = model.atoms()
    arguments: dict[str, Any] = {
        "geometry": model.geometry,
        "inv_freq": model.naive.inv_freq,
        "rope_scale": 1.0,
        "store": model.store,
        "atoms": atoms,
        "pages": np.zeros((8, page_elements(8, np.float32)), np.float32),
        "page_table": np.zeros((1, 4, 2), np.int32),
        "max_rows": 4,
        "context_tokens": 96,
        "pool": Pool(1),
    }
    return StageKernels(**(arguments | changes))


def test_good_arguments_build(model: PackedModel) -> None:
    assert build(model).n_layers == 2


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_rows", 0, "at least 1"),
        ("context_tokens", 0, "at least 1"),
        ("inv_freq", np.ones(4, np.float32), r"inv_freq must be float64 of shape \(4,\)"),
        ("inv_freq", np.ones(8), r"inv_freq must be float64 of shape \(4,\)"),
        ("inv_freq", np.full(4, np.nan), "NaN"),
        ("rope_scale", float("inf"), "NaN or infinity"),
        ("geometry", geometry(head_dim=9), "head_dim 9 must be even"),
        ("geometry", geometry(n_heads=5), "n_heads 5 a multiple of n_kv_heads 2"),
        ("pages", np.zeros((8, 1024), np.int16), "uint16 .* float32 or int8, got int16"),
        ("pages", np.zeros((8, 1024), np.int8), "has 1536 elements of int8, the pool has 1024"),
        ("pages", aligned_zeros(8 * 1536 + 2, np.int8)[2:].reshape(8, -1), "multiple of 4 bytes"),
        ("pages", np.zeros((8, 100), np.float32), "has 1024 elements of float32, the pool has 100"),
        ("pages", np.zeros((1024, 8), np.float32).T, "contiguous"),
        ("page_table", np.zeros((1, 4, 2), np.int64), "int32"),
        ("page_table", np.zeros((1, 3, 2), np.int32), "must have 4 local groups"),
        ("page_table", np.zeros((1, 4, 1), np.int32), "at least 2 pages for 96 tokens"),
        ("store", np.zeros(64, np.int8), "flat, contiguous uint8"),
        ("store", aligned_zeros(4096, np.uint8)[1:], "not a multiple of 64"),
        ("store", aligned_zeros(64, np.uint8), "lies outside the store of 64 bytes"),
    ],
)
def test_bad_argument(model: PackedModel, name: str, value: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        build(model, **{name: value})


def shifted(offsets: Any, by: int) -> Any:
    return tuple(o + by for o in offsets)


def test_bad_offsets(model: PackedModel) -> None:
    atoms = model.atoms()
    cases = [
        (replace(atoms, head_groups=shifted(atoms.head_groups, 32)), "not a multiple of 64"),
        (replace(atoms, columns=shifted(atoms.columns, 1 << 40)), "columns of layer 0.*outside"),
        (replace(atoms, head_groups=shifted(atoms.head_groups, -(1 << 40))), "outside the store"),
        (replace(atoms, norms=atoms.norms.astype(np.int32)), "layer norms must be a flat int64"),
        (replace(atoms, norms=atoms.norms[:1]), "2 layers need as many lists"),
        (replace(atoms, final_norm=-1), "final norm.*outside"),
        (replace(atoms, vocab_n_rows=atoms.vocab_n_rows + 1), "vocab blob 0 claims 129 rows"),
        (replace(atoms, vocab_first_rows=atoms.vocab_first_rows + 2), "vocab blob 1 claims 3 rows"),
        (replace(atoms, vocab_n_rows=atoms.vocab_n_rows[:1]), "need as many int64 first rows"),
    ]
    for bad, text in cases:
        with pytest.raises(InputError, match=text):
            build(model, atoms=bad)


def test_too_many_groups(model: PackedModel) -> None:
    atoms = model.atoms()
    twice = tuple(np.concatenate([groups, groups]) for groups in atoms.head_groups)
    with pytest.raises(InputError, match="the member claims 4 and 2"):
        build(model, atoms=replace(atoms, head_groups=twice))
