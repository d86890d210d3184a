"""Conversions that fail: a clear text, and nothing left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernels.errors import HeadwiseError, InputError, ModelError, ResourceError
from tests.unit.tiny_checkpoint import TINY_CONFIG, make_checkpoint, random_tensors
from weights.convert import convert
from weights.manifest import DType

F32Array = npt.NDArray[np.float32]


def _fails(tmp_path: Path, kind: type[HeadwiseError], dtype: DType = "q8", **extra: Any) -> str:
    """Convert src to out, expect an error, check that nothing is left, return the text."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(kind) as caught:
        convert(tmp_path / "src", tmp_path / "out", dtype, **extra)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return str(caught.value)


def _nan(tensors: dict[str, F32Array]) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"][3, 43] = np.nan


def _nan_norm(tensors: dict[str, F32Array]) -> None:
    tensors["model.norm.weight"][3] = np.nan


def _renamed(tensors: dict[str, F32Array]) -> None:
    tensors["model.norm.gain"] = tensors.pop("model.norm.weight")


def _bias(tensors: dict[str, F32Array]) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)


def _too_large(tensors: dict[str, F32Array]) -> None:
    tensors["lm_head.weight"][130, 0] = 1e7


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_nan, "tensor model.layers.1.mlp.down_proj.weight holds NaN or infinity"),
        (_nan_norm, "tensor model.norm.weight holds NaN or infinity"),
        (_renamed, "has no tensor model.norm.weight (it has an unknown model.norm.gain: renamed?)"),
        (_bias, "holds 1 tensors that a llama model does not use, such as model.layers.0.self_att"),
        (_too_large, "tensor lm_head.weight holds a weight of magnitude 1e+07"),
    ],
)
def test_bad_tensors_are_named_and_leave_nothing(
    tmp_path: Path, spoil: Callable[[dict[str, F32Array]], None], text: str
) -> None:
    tensors = random_tensors(TINY_CONFIG)
    spoil(tensors)
    make_checkpoint(tmp_path / "src", tensors=tensors)
    assert text in _fails(tmp_path, ModelError, "f16" if spoil is _too_large else "q8")


def test_a_source_that_is_none_is_named(tmp_path: Path) -> None:
    assert "is no directory; give a Hugging Face" in _fails(tmp_path, ModelError)
    (tmp_path / "src").mkdir()
    assert "config.json cannot be read" in _fails(tmp_path, ModelError)
    (tmp_path / "src" / "config.json").write_text(json.dumps(TINY_CONFIG))
    assert "holds neither model.safetensors" in _fails(tmp_path, ModelError)


def test_a_damaged_tokenizer_or_generation_config_is_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "src")
    (tmp_path / "src" / "tokenizer.json").write_text("{")
    assert "tokenizer.json is not a JSON object" in _fails(tmp_path, ModelError)
    (tmp_path / "src" / "tokenizer.json").unlink()
    (tmp_path / "src" / "generation_config.json").write_text('{"eos_token_id": 9000}')
    assert "token 9000 is outside the vocabulary" in _fails(tmp_path, ModelError)


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_an_out_that_exists_is_left_alone(tmp_path: Path, kind: str) -> None:
    make_checkpoint(tmp_path / "src")
    out = tmp_path / "out"
    if kind == "directory":
        out.mkdir()
    elif kind == "file":
        out.write_text("precious")
    else:
        out.symlink_to(tmp_path / "nowhere")
    assert f"'{out}' exists; remove it or choose another OUT" in _fails(tmp_path, InputError)
    assert kind != "file" or out.read_text() == "precious"


def test_an_out_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "src")
    out = tmp_path / "out"
    with pytest.raises(InputError, match="appeared while converting"):
        convert(tmp_path / "src", out, "q8", progress=lambda _done, _all: out.mkdir(exist_ok=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]


def test_an_out_without_a_parent_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "src")
    with pytest.raises(InputError, match="is no directory; create it or choose another OUT"):
        convert(tmp_path / "src", tmp_path / "a" / "b", "q8")


def test_a_disk_with_too_little_room_is_seen_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path / "src")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    assert "has only 1000 free; free " in _fails(tmp_path, ResourceError)


@pytest.mark.parametrize("room_bytes", [0, 4096, 100_000])
def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    make_checkpoint(tmp_path / "src")
    written_bytes = 0

    def write(_fd: int, data: memoryview) -> int:
        nonlocal written_bytes
        n_bytes = min(len(data), room_bytes - written_bytes)
        if n_bytes == 0:
            raise OSError(28, "No space left on device")
        written_bytes += n_bytes
        return n_bytes

    monkeypatch.setattr("weights.output._write", write)
    message = _fails(tmp_path, ResourceError, "f32")
    assert f"the disk of '{tmp_path / 'out'}' is full (No space left on device)" in message


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, stop: type[BaseException]
) -> None:
    make_checkpoint(tmp_path / "src")

    def interrupt(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > total_bytes // 2:
            raise stop

    with pytest.raises(stop):
        convert(tmp_path / "src", tmp_path / "out", "q8", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
