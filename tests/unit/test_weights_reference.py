"""Converted atoms, put through the float64 oracle, give the logits that others recorded."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.naive import NaiveLayer, NaiveModel, forward
from tests.unit.reassembled import Reassembled
from weights.convert import convert
from weights.directory import ModelDirectory
from weights.families import TensorNames

DATA = Path(__file__).parents[1] / "data"
STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
F64 = npt.NDArray[np.float64]


def _logits(source: Path, out: Path, ids: npt.NDArray[np.int64]) -> F64:
    """Return the logits (len(ids), V) of the model converted to f32."""
    convert(source, out, "f32")
    with ModelDirectory.open(out) as model:
        config, g = model.config, model.geometry
        tensors = {k: v.astype(np.float64) for k, v in Reassembled(model).tensors().items()}
        x = np.empty((len(ids), g.hidden_size), np.float32)
        for row, token_id in enumerate(ids):
            model.embedding_row(int(token_id), x[row])
    names = TensorNames(config)
    layers = []
    for i in range(g.n_layers):
        n = names.layer(i)
        no_bias = {
            "q_bias": np.zeros(g.n_heads * g.head_dim),
            "k_bias": np.zeros(g.n_kv_heads * g.head_dim),
            "v_bias": np.zeros(g.n_kv_heads * g.head_dim),
        }
        found = {field: tensors[name] for field, name in n._asdict().items() if name}
        layers.append(NaiveLayer(**{**no_bias, **found}))
    naive = NaiveModel(
        g, layers, tensors[names.final_norm], tensors[names.lm_head], config.inv_freq()
    )
    return forward(naive, x.astype(np.float64))[1]


@pytest.mark.parametrize("name", ["llama-linear", "llama-llama3", "mistral", "qwen2", "qwen3"])
def test_recorded_models_give_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    with np.load(DATA / name / "reference.npz") as reference:
        prompt_ids, greedy_ids = reference["prompt_ids"], reference["greedy_ids"]
        expected = reference["logits"]
    logits = _logits(DATA / name, tmp_path / "out", np.concatenate([prompt_ids, greedy_ids]))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
    assert logits[len(prompt_ids) - 1 : -1].argmax(axis=1).tolist() == greedy_ids.tolist()
    # Rounding never decides a greedy step of these models.
    best = np.sort(logits[len(prompt_ids) - 1 :], axis=1)
    assert (best[:, -1] - best[:, -2]).min() > 0.09


@pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/models/stories260K is absent")
def test_stories260k_gives_its_reference_logits(tmp_path: Path) -> None:
    with np.load(STORIES / "reference_logits_f64.npz") as reference:
        for case in range(3):
            logits = _logits(STORIES / "hf", tmp_path / f"{case}", reference[f"ids_{case}"])
            np.testing.assert_allclose(logits, reference[f"logits_{case}"], rtol=0, atol=1e-4)
