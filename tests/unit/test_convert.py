"""Conversion: every weight at its place, and what the manifest keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.unit.reassembled import Reassembled
from tests.unit.tiny_checkpoint import TINY_CONFIG, make_checkpoint
from weights.checkpoint import Checkpoint
from weights.convert import Provenance, convert
from weights.directory import ModelDirectory
from weights.families import TensorNames
from weights.manifest import DType

DATA = Path(__file__).parents[1] / "data"
DTYPES: tuple[DType, ...] = ("f32", "f16", "q8", "q4")
F32Array = npt.NDArray[np.float32]


def _tolerance(name: str, values: F32Array, dtype: DType) -> float:
    if dtype == "f32" or values.ndim == 1:
        return 0.0
    largest = float(np.abs(values).max())
    # Half a step of the format, with float16 rounding of the value or the scale; q4 clips
    # the side opposite to the largest magnitude, up to one whole step.
    return largest * {"f16": 2**-11, "q8": 0.51 / 127, "q4": 1.01 / 8}[dtype]


def _assert_equals(model: ModelDirectory, expected: dict[str, F32Array], dtype: DType) -> None:
    found = Reassembled(model).tensors()
    wanted = {name for name in expected if not TensorNames(model.config).is_ignorable(name)}
    assert set(found) == wanted
    for name, values in found.items():
        assert values.shape == expected[name].shape
        tolerance = _tolerance(name, expected[name], dtype)
        np.testing.assert_allclose(
            values, expected[name], rtol=0, atol=tolerance, err_msg=f"{name} as {dtype}"
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"model_type": "qwen2", "hidden_size": 28, "num_attention_heads": 14},
        {"model_type": "qwen3", "head_dim": 80, "num_key_value_heads": 1},
        {"num_key_value_heads": 4, "intermediate_size": 7, "vocab_size": 5},
    ],
)
def test_every_weight_is_at_its_place(
    tmp_path: Path, dtype: DType, changes: dict[str, Any]
) -> None:
    tensors = make_checkpoint(tmp_path / "src", {**TINY_CONFIG, **changes}, dtype="BF16")
    manifest = convert(tmp_path / "src", tmp_path / "out", dtype)
    with ModelDirectory.open(tmp_path / "out") as model:
        assert model.manifest == manifest
        _assert_equals(model, tensors, dtype)


@pytest.mark.parametrize("name", ["llama-linear", "llama-llama3", "mistral", "qwen2", "qwen3"])
def test_recorded_models_are_converted_exactly(tmp_path: Path, name: str) -> None:
    checkpoint = Checkpoint(DATA / name)
    tensors = {
        tensor: checkpoint.read(tensor).columns().reshape(shape)
        for tensor, shape in checkpoint.shapes.items()
    }
    convert(DATA / name, tmp_path / "out", "f32")
    with ModelDirectory.open(tmp_path / "out") as model:
        _assert_equals(model, tensors, "f32")
        atoms = [
            model.manifest.atom(s.kind, s.layer, i)
            for s in model.manifest.sections
            for i in range(len(s.hashes))
        ]
        model.verify_atoms(atoms)


def test_recorded_models_stay_small() -> None:
    sizes = {
        path.name: sum(file.stat().st_size for file in path.iterdir()) for path in DATA.iterdir()
    }
    assert len(sizes) >= 5
    assert max(sizes.values()) <= 300_000
    assert sum(sizes.values()) <= 2_500_000


def test_shards_and_order_make_no_difference(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "one")
    make_checkpoint(tmp_path / "three", n_shards=3, dtype="F16")
    origin = Provenance("somewhere/model")
    one = convert(tmp_path / "one", tmp_path / "out1", "q8", origin)
    three = convert(tmp_path / "three", tmp_path / "out3", "q8", origin)
    assert one.model_id == three.model_id
    assert (tmp_path / "out1/weights.bin").read_bytes() == (
        tmp_path / "out3/weights.bin"
    ).read_bytes()


def test_provenance_and_side_files_are_kept(tmp_path: Path) -> None:
    src = tmp_path / "src"
    make_checkpoint(src)
    (src / "chat_template.jinja").write_text("{{ messages }}")
    (src / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    (src / "unrelated.txt").write_text("x")
    manifest = convert(src, tmp_path / "out", "q8", Provenance("org/model-7b", "abc", "MIT"))
    assert (manifest.name, manifest.source) == ("model-7b", "org/model-7b")
    assert (manifest.revision, manifest.licence) == ("abc", "MIT")
    assert set(manifest.files) == {"chat_template.jinja", "generation_config.json"}
    assert manifest.config.eos_ids == (3, 4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "chat_template.jinja",
        "generation_config.json",
        "manifest.json",
        "weights.bin",
    ]
    assert convert(src, tmp_path / "plain", "q8").name == "src"


def test_progress_rises_to_the_whole(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "src")
    calls: list[tuple[int, int]] = []
    manifest = convert(
        tmp_path / "src", tmp_path / "out", "q8", progress=lambda *call: calls.append(call)
    )
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (manifest.weights_bytes, manifest.weights_bytes)
