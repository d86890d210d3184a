"""Random models for benchmarks: sound, repeatable, with sane statistics."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.errors import InputError
from tests.unit.reassembled import Reassembled
from tests.unit.tiny_checkpoint import TINY_CONFIG
from weights.convert import convert_random
from weights.directory import ModelDirectory
from weights.manifest import DType


def _config(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**TINY_CONFIG, **changes}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "f16", "q8", "q4"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_size": 64, "head_dim": 16, "intermediate_size": 64, "vocab_size": 256},
        {"model_type": "qwen2", "hidden_size": 96, "head_dim": 16, "vocab_size": 300},
        {"model_type": "qwen3", "hidden_size": 128, "head_dim": 48, "intermediate_size": 100},
    ],
)
def test_random_models_have_sound_atoms(
    tmp_path: Path, dtype: DType, changes: dict[str, Any]
) -> None:
    manifest = convert_random(_config(tmp_path, **changes), tmp_path / "out", dtype)
    assert manifest.config.eos_ids == ()
    with ModelDirectory.open(tmp_path / "out") as model:
        model.verify_atoms(
            manifest.atom(s.kind, s.layer, i)
            for s in manifest.sections
            for i in range(len(s.hashes))
        )
        # Fails too if padding is not zero.
        tensors = Reassembled(model).tensors()
    for name, values in tensors.items():
        assert np.isfinite(values).all()
        if values.ndim == 2:
            spread = float(values.std()) * values.shape[1] ** 0.5
            assert 0.85 < spread < 1.15, name
        elif "norm" in name:
            assert values.min() >= 0.8


def test_equal_seeds_give_equal_models(tmp_path: Path) -> None:
    config = _config(tmp_path, hidden_size=64, head_dim=16)
    ids = [
        convert_random(config, tmp_path / f"out{i}", "q8", seed).sections[-1].hashes
        for i, seed in enumerate((3, 3, 4))
    ]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_an_out_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists; remove it"):
        convert_random(_config(tmp_path), tmp_path / "out", "q8")
