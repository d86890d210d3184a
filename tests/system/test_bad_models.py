"""Model files that are damaged, renamed, absurd or too big for the disk, through the commands."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.system.bad_input import error_of
from tests.system.conftest import DATA, ROOT
from tests.unit.tiny_checkpoint import TINY_CONFIG, make_checkpoint, random_tensors
from weights.convert import convert
from weights.demo import demo_path
from weights.directory import ModelDirectory
from weights.sections import AtomKind

Capture = pytest.CaptureFixture[str]


# Checkpoints.


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "src")
    return tmp_path / "src"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def cut_the_header(path: Path) -> None:
    os.truncate(path, 100)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def claim_a_huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 62) + path.read_bytes()[8:])


def is_html(path: Path) -> None:
    path.write_text("<html>404: not found</html>" * 10)


def rename_file(path: Path) -> None:
    path.rename(path.with_name("weights.safetensors"))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (truncate, "model.safetensors is damaged or truncated: "),
        (cut_the_header, "model.safetensors is damaged or truncated: "),
        (append, "model.safetensors is damaged or truncated: "),
        (claim_a_huge_header, "model.safetensors is damaged or truncated: "),
        (is_html, "model.safetensors is damaged or truncated: "),
        (rename_file, "holds neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_files_of_weights(
    source: Path, capsys: Capture, spoil: Callable[[Path], None], text: str
) -> None:
    spoil(source / "model.safetensors")
    assert text in error_of(capsys, "convert", source, source.with_name("out"))
    assert [path.name for path in source.parent.iterdir()] == ["src"]


def nan(tensors: dict[str, Any]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan


def oversized(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = np.zeros((131, 48), np.float32)


def renamed(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.self_attn.qproj.weight"] = tensors.pop(
        "model.layers.0.self_attn.q_proj.weight"
    )


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (nan, "tensor model.layers.1.mlp.up_proj.weight holds NaN or infinity"),
        (oversized, "tensor lm_head.weight has shape (131, 48), config.json asks for (131, 24)"),
        (renamed, "has no tensor model.layers.0.self_attn.q_proj.weight (it has an unknown"),
    ],
)
def test_tensors(
    tmp_path: Path, capsys: Capture, spoil: Callable[[dict[str, Any]], None], text: str
) -> None:
    tensors = random_tensors(TINY_CONFIG)
    spoil(tensors)
    make_checkpoint(tmp_path / "src", tensors=tensors)
    assert text in error_of(capsys, "convert", tmp_path / "src", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "mamba"}, "llama, mistral, qwen2, qwen3"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"model_type": "mistral", "sliding_window": 32}, "sliding"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"num_hidden_layers": 0}, "layers"),
        ({"num_key_value_heads": 3}, "heads"),
        ({"vocab_size": -5}, "vocab_size"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ],
)
def test_configs(source: Path, capsys: Capture, changes: dict[str, Any], text: str) -> None:
    (source / "config.json").write_text(json.dumps({**TINY_CONFIG, **changes}))
    assert text in error_of(capsys, "convert", source, source.with_name("out"))


def test_an_out_that_exists(source: Path, capsys: Capture) -> None:
    out = source.with_name("out")
    out.write_text("precious")
    assert error_of(capsys, "convert", source, out) == (
        f"'{out}' exists; remove it or choose another OUT"
    )
    assert out.read_text() == "precious"


def in_small_tmpfs(place: Path, size: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command while `place` is a tmpfs of that size, and list what it left there."""
    script = (
        'mount -t tmpfs -o size="$1" tmpfs "$2" || exit 77; place="$2"; shift 2; '
        '"$@"; code=$?; ls -A "$place"; exit $code'
    )
    place.mkdir()
    command = ["unshare", "--mount", "sh", "-c", script, "sh", size, str(place)]
    if shutil.which("unshare") is None or os.geteuid():
        pytest.skip("mounting a small disk needs root and unshare")
    done = subprocess.run(
        [*command, sys.executable, "-m", "tools.cli", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"this machine lets nobody mount a small disk: {done.stderr.strip()}")
    return done


@pytest.mark.parametrize("size", ["64k", "8k"])
def test_a_full_disk(tmp_path: Path, size: str) -> None:
    source, disk = DATA / "qwen2", tmp_path / "disk"
    done = in_small_tmpfs(disk, size, "convert", source, disk / "out", "--dtype", "f32")
    assert done.returncode == 1
    assert done.stdout == "", "something was left on the disk"
    assert "error: " in done.stderr.splitlines()[-1]
    assert " free" in done.stderr.splitlines()[-1]


# Model directories.


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model, to be damaged."""
    shutil.copytree(demo_path(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('"format_version":1', '"format_version":99', "format version 99"),
        ('"hidden_size":192', '"hidden_size":1000000000000', "hidden_size"),
        ('"n_layers":6', '"n_layers":-6', "n_layers"),
        ('"n_layers":6', '"n_layers":5', "sections"),
        ('"head_dim":24', '"head_dim":23', "head_dim"),
        ('"offset_bytes":4096', '"offset_bytes":8192', "must start at 4096"),
        ('"kind":"column"', '"kind":"row"', "manifest is damaged"),
        ('"dtype":"q8"', '"dtype":"q9"', "manifest is damaged"),
        ('{"format', '{{"format', "manifest is damaged"),
        ('"files":{', '"files":{"../../etc/passwd":"' + 32 * "0" + '",', "../../etc/passwd"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_manifests(model: Path, capsys: Capture, verb: str, old: str, new: str, text: str) -> None:
    manifest = (model / "manifest.json").read_text()
    assert old in manifest
    (model / "manifest.json").write_text(manifest.replace(old, new, 1))
    found = error_of(capsys, verb, "-m", model)
    assert text in found
    assert str(model / "manifest.json") in found


def test_files_of_a_model_that_are_missing_cut_or_changed(model: Path, capsys: Capture) -> None:
    (model / "tokenizer.json").write_text("{}")
    assert "is not the file that was converted" in error_of(capsys, "run", "-m", model)
    (model / "tokenizer.json").unlink()
    assert f"{model / 'tokenizer.json'} cannot be read" in error_of(capsys, "run", "-m", model)
    n_bytes = (model / "weights.bin").stat().st_size
    os.truncate(model / "weights.bin", n_bytes - 1)
    text = f"weights.bin has {n_bytes - 1} bytes, its manifest says {n_bytes}"
    assert text in error_of(capsys, "verify", "-m", model)
    (model / "weights.bin").unlink()
    assert "weights.bin cannot be read" in error_of(capsys, "plan", "-m", model)


@pytest.mark.parametrize("verb", ["run", "plan", "verify"])
def test_a_path_without_a_model(tmp_path: Path, capsys: Capture, verb: str) -> None:
    found = error_of(capsys, verb, "-m", tmp_path / "no-such-model")
    assert "no-such-model' is not a headwise model directory" in found
    assert "headwise convert" in found
    (tmp_path / "file").write_text("a")
    assert "is not a headwise model directory" in error_of(capsys, verb, "-m", tmp_path / "file")


@pytest.mark.parametrize(
    ("kind", "layer", "index"),
    [
        ("head_group", 2, 3),
        ("vocab", -1, 6),
        pytest.param("column", 5, 7, marks=pytest.mark.slow),
        pytest.param("layer_norms", 0, 0, marks=pytest.mark.slow),
    ],
)
def test_one_wrong_bit_in_an_atom_is_found_and_named(
    model: Path, capsys: Capture, kind: AtomKind, layer: int, index: int
) -> None:
    with ModelDirectory.open(model) as directory:
        atom = directory.manifest.atom(kind, layer, index)
    with (model / "weights.bin").open("r+b") as file:
        file.seek(atom.offset_bytes + atom.n_bytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    found = error_of(capsys, "run", "-m", model, "-n", "1")
    assert f"{kind} {index}" in found
    assert layer < 0 or f"of layer {layer}" in found
    if kind == "vocab":
        # The demo's embedding rows are its vocab rows, which the coordinator checks at the start.
        assert found.startswith(f"{model / 'weights.bin'}: vocab {index} is damaged")
    else:
        assert found.startswith("agent 'local-")
        assert f"cannot load its part: {model}" in found


def test_wrong_hashes_in_the_manifest_are_found_and_named(model: Path, capsys: Capture) -> None:
    with ModelDirectory.open(model) as directory:
        wrong = directory.manifest.atom("column", 1, 2).hash
    manifest = (model / "manifest.json").read_text()
    (model / "manifest.json").write_text(manifest.replace(wrong, 32 * "a"))
    found = error_of(capsys, "run", "-m", model, "-n", "1")
    assert "column 2 of layer 1 does not have the hash that its manifest names" in found


def test_a_damaged_embedding_table_of_the_coordinator_is_found(
    tmp_path: Path, capsys: Capture
) -> None:
    """An untied embedding is read by the coordinator alone: no agent would notice."""
    model = tmp_path / "model"
    convert(DATA / "qwen3", model, "q8")
    with ModelDirectory.open(model) as directory:
        atom = directory.manifest.atom("embedding", -1, 0)
    with (model / "weights.bin").open("r+b") as file:
        file.seek(atom.offset_bytes)
        file.write(bytes(4096))
    assert "embedding 0" in error_of(capsys, "run", "-m", model, "--prompt-ids", "5", "-n", "1")
