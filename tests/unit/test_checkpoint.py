"""Reading safetensors, sound and broken."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.errors import ModelError
from tests.unit.tiny_checkpoint import (
    TINY_CONFIG,
    make_checkpoint,
    random_tensors,
    write_safetensors,
)
from weights.checkpoint import Checkpoint, read_json

NAME = "model.layers.0.mlp.down_proj.weight"


def _error(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Checkpoint(path).check({name: t.shape for name, t in random_tensors(TINY_CONFIG).items()})
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_every_stored_type_is_read_exactly(tmp_path: Path, dtype: str, n_shards: int) -> None:
    tensors = make_checkpoint(tmp_path, dtype=dtype, n_shards=n_shards)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.check({name: values.shape for name, values in tensors.items()})
    assert checkpoint.shapes == {name: values.shape for name, values in tensors.items()}
    for name, values in tensors.items():
        found = checkpoint.read(name).columns()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.reshape(values.shape), values)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_rows_and_columns_are_cut(tmp_path: Path, dtype: str) -> None:
    tensors = make_checkpoint(tmp_path, dtype=dtype)
    found = Checkpoint(tmp_path).read(NAME, 3, 5).columns(7, 20)
    np.testing.assert_array_equal(found, tensors[NAME][3:8, 7:20])
    assert found.flags.c_contiguous


def test_a_directory_without_weights_says_what_is_needed(tmp_path: Path) -> None:
    assert "holds neither model.safetensors nor model.safetensors.index.json" in _error(tmp_path)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for n_bytes in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n_bytes])
        message = _error(tmp_path)
        assert str(path) in message
        assert "get the checkpoint again" in message


def test_oversized_files_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    assert f"{path} is damaged or truncated" in _error(tmp_path)


def test_a_file_that_shrinks_while_reading_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 5000)
    with pytest.raises(ModelError, match=r"tensor lm_head\.weight ends early: the file shrank"):
        checkpoint.read("lm_head.weight")


def test_renamed_tensors_are_named(tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG)
    tensors["model.layers.0.mlp.w2.weight"] = tensors.pop(NAME)
    make_checkpoint(tmp_path, tensors=tensors)
    assert (
        f"has no tensor {NAME} (it has an unknown model.layers.0.mlp.w2.weight: renamed?)"
        in _error(tmp_path)
    )


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG)
    tensors[NAME] = tensors[NAME].T.copy()
    make_checkpoint(tmp_path, tensors=tensors)
    expected = f"tensor {NAME} has shape (44, 24), config.json asks for (24, 44)"
    assert expected in _error(tmp_path)


def test_other_stored_types_are_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, dtype="F64")
    assert "is stored as F64; supported are F32, F16, BF16" in _error(tmp_path)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named(tmp_path: Path, dtype: str, bad: float) -> None:
    tensors = random_tensors(TINY_CONFIG)
    tensors[NAME][5, 30] = bad
    make_checkpoint(tmp_path, tensors=tensors, dtype=dtype)
    stored = Checkpoint(tmp_path).read(NAME)
    stored.columns(0, 30)
    with pytest.raises(ModelError) as caught:
        stored.columns(30, 44)
    expected = f"{tmp_path / 'model.safetensors'}: tensor {NAME} holds NaN or infinity"
    assert expected in str(caught.value)


def test_weights_above_the_limit_are_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    with pytest.raises(ModelError, match=r"a weight of magnitude 1\.98438, the chosen dtype"):
        Checkpoint(tmp_path).read(NAME).columns(largest=1.5)


def test_huge_headers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}" * 100)
    assert "is damaged or truncated" in _error(tmp_path)


def _index(path: Path, content: object) -> Path:
    index_path = path / "model.safetensors.index.json"
    text = content if isinstance(content, str) else json.dumps(content)
    index_path.write_text(text)
    return index_path


def test_missing_shards_are_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, n_shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors cannot be read" in _error(tmp_path)


def test_broken_promises_of_an_index_are_named(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"x": np.zeros((2, 2), np.float32)})
    _index(tmp_path, {"weight_map": {"x": "a.safetensors", "y": "a.safetensors"}})
    assert "a.safetensors has no tensor y, which model.safetensors.index.json" in _error(tmp_path)


def test_tensors_in_two_shards_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"x": np.zeros((2, 2), np.float32)})
    _index(tmp_path, {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    assert "b.safetensors: tensor x is also in another file" in _error(tmp_path)


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/passwd", "..", "x/y.safetensors"])
def test_an_index_cannot_reach_outside(tmp_path: Path, shard: str) -> None:
    _index(tmp_path, {"weight_map": {"x": shard}})
    assert f"names the file {shard!r} outside its directory" in _error(tmp_path)


@pytest.mark.parametrize("content", ["[", "[]", "{}", {"weight_map": []}, {"weight_map": {}}])
def test_broken_indexes_are_refused(tmp_path: Path, content: object) -> None:
    assert str(_index(tmp_path, content)) in _error(tmp_path)


def test_json_files_are_bounded_objects(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ModelError, match="is not a JSON object"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ModelError, match="is not a JSON object"):
        read_json(path)
    path.write_bytes(b"")
    os.truncate(path, (64 << 20) + 1)
    with pytest.raises(ModelError, match="is larger than"):
        read_json(path)


@settings(max_examples=150, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
def test_damaged_headers_never_crash(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "model.safetensors"
    write_safetensors(path, {"x": np.ones((4, 8), np.float32), "y": np.ones((3,), np.float32)})
    data = bytearray(path.read_bytes())
    for place, value in flips:
        data[place % len(data)] = value
    path.write_bytes(data)
    try:
        checkpoint = Checkpoint(path.parent)
        checkpoint.check({name: shape for name, shape in checkpoint.shapes.items() if shape})
        for name, shape in checkpoint.shapes.items():
            if 1 <= len(shape) <= 2:
                checkpoint.read(name).columns()
    except ModelError:
        pass
