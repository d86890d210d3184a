"""The model directory: mapping, checking atoms, embedding rows."""

from pathlib import Path

import numpy as np
import pytest

from kernels.errors import ModelError, PromptError
from tests.unit.tiny_checkpoint import TINY_CONFIG, make_checkpoint
from weights.convert import convert
from weights.demo import demo_path
from weights.directory import ModelDirectory
from weights.manifest import DType


def _model(tmp_path: Path, dtype: DType = "q8", tied: bool = False) -> Path:
    make_checkpoint(tmp_path / "src", {**TINY_CONFIG, "tie_word_embeddings": tied})
    (tmp_path / "src" / "tokenizer_config.json").write_text("{}")
    convert(tmp_path / "src", tmp_path / "out", dtype)
    return tmp_path / "out"


def test_a_directory_maps_its_weights_read_only(tmp_path: Path) -> None:
    path = _model(tmp_path)
    with ModelDirectory.open(path) as model:
        assert model.weights.dtype == np.uint8
        assert model.weights.nbytes == (path / "weights.bin").stat().st_size
        assert not model.weights.flags.writeable
        assert model.weights.ctypes.data % 64 == 0
        assert model.model_id == model.manifest.model_id
        assert model.config.family == "llama"
        assert model.geometry.hidden_size == 24
        view = model.weights[:10]
    assert model.weights.size == 0
    assert view.size == 10, "a view outlives the directory"


def _damage(path: Path, at: int) -> None:
    """Flip a bit of weights.bin."""
    with (path / "weights.bin").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_all_atoms_verify_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = _model(tmp_path)
    with ModelDirectory.open(path) as model:
        manifest = model.manifest
        atoms = [
            manifest.atom(section.kind, section.layer, i)
            for section in manifest.sections
            for i in range(len(section.hashes))
        ]
        model.verify_atoms(atoms)
        victim = manifest.atom("column", 1, 1)
    _damage(path, victim.offset_bytes + 100)
    with ModelDirectory.open(path) as model:
        model.verify_atoms([atom for atom in atoms if atom != victim])
        with pytest.raises(ModelError, match=r"weights\.bin: column 1 of layer 1 is damaged"):
            model.verify_atoms(atoms)


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8", "q4"])
@pytest.mark.parametrize("tied", [False, True])
def test_embedding_rows_are_those_of_the_checkpoint(
    tmp_path: Path, dtype: DType, tied: bool
) -> None:
    tensors = make_checkpoint(tmp_path / "src", {**TINY_CONFIG, "tie_word_embeddings": tied})
    convert(tmp_path / "src", tmp_path / "out", dtype)
    # A quarter or a hundredth of the largest weight, 127/64, is half a step of q4 or q8.
    tolerance = {"f32": 0.0, "f16": 0.0, "q8": 0.009, "q4": 0.26}[dtype]
    row = np.empty(24, np.float32)
    with ModelDirectory.open(tmp_path / "out") as model:
        for token_id in (0, 7, 127, 128, 130):
            model.embedding_row(token_id, row)
            expected = tensors["model.embed_tokens.weight"][token_id]
            np.testing.assert_allclose(row, expected, rtol=0, atol=tolerance)


def test_a_damaged_embedding_is_named_each_time(tmp_path: Path) -> None:
    path = _model(tmp_path)
    with ModelDirectory.open(path) as model:
        victim = model.manifest.atom("embedding", -1, 1)
    _damage(path, victim.offset_bytes)
    row = np.empty(24, np.float32)
    with ModelDirectory.open(path) as model:
        model.embedding_row(0, row)
        with pytest.raises(ModelError, match="embedding 1 is damaged"):
            model.verify_embedding()
        for _ in range(2):
            with pytest.raises(ModelError, match="embedding 1 is damaged"):
                model.embedding_row(128, row)


def test_closing_lets_go_of_the_file(tmp_path: Path) -> None:
    model = ModelDirectory.open(_model(tmp_path))
    model.embedding_row(0, np.empty(24, np.float32))
    model.close()
    assert model._mapping.closed


@pytest.mark.parametrize("token_id", [-1, 131, 1 << 40])
def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path, token_id: int) -> None:
    row = np.empty(24, np.float32)
    expected = f"token {token_id} is outside the vocabulary"
    with (
        ModelDirectory.open(_model(tmp_path)) as model,
        pytest.raises(PromptError, match=expected),
    ):
        model.embedding_row(token_id, row)


def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a headwise model directory") as caught:
        ModelDirectory.open(tmp_path)
    assert "headwise convert SRC OUT" in str(caught.value)
    with pytest.raises(ModelError, match="No such file or directory"):
        ModelDirectory.open(tmp_path / "absent")


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    path = _model(tmp_path) / "manifest.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match=r"manifest\.json: manifest is damaged"):
        ModelDirectory.open(path.parent)


@pytest.mark.parametrize("change", [-1, 1])
def test_weights_of_another_size_are_refused(tmp_path: Path, change: int) -> None:
    path = _model(tmp_path)
    n_bytes = (path / "weights.bin").stat().st_size
    with (path / "weights.bin").open("r+b") as file:
        file.truncate(n_bytes + change)
    expected = f"has {n_bytes + change} bytes, its manifest says {n_bytes}"
    with pytest.raises(ModelError, match=expected):
        ModelDirectory.open(path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    path = _model(tmp_path)
    (path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin cannot be read"):
        ModelDirectory.open(path)


def test_side_files_must_be_the_converted_ones(tmp_path: Path) -> None:
    path = _model(tmp_path)
    with ModelDirectory.open(path) as model:
        assert model.path("tokenizer_config.json") == path / "tokenizer_config.json"
        assert model.path("tokenizer.json") is None
        (path / "tokenizer_config.json").write_text('{"eos_token": "x"}')
        with pytest.raises(ModelError, match="is not the file that was converted"):
            model.path("tokenizer_config.json")
        (path / "tokenizer_config.json").unlink()
        with pytest.raises(ModelError, match="cannot be read"):
            model.path("tokenizer_config.json")


def test_a_missing_demo_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weights.demo.__file__", str(tmp_path / "demo.py"))
    with pytest.raises(ModelError, match="the demo model is missing"):
        demo_path()
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "manifest.json").write_text("{}")
    assert demo_path() == tmp_path / "demo"
