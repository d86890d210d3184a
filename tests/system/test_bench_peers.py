"""`tools/bench_peers.py` on models of a few kilobytes, with peers that are really there or not."""

import csv
import importlib.util
import json
import math
from pathlib import Path

import pytest

import tools.bandwidth
import tools.bench_peers
from tests.system.bench_commands import measure_little, refused_by, shape_file
from tests.unit.tiny_checkpoint import TINY_CONFIG
from tools.bench_peers import main

Capture = pytest.CaptureFixture[str]

# Whole blocks of 32 weights, as llama.cpp needs them.
SHAPE = {
    **TINY_CONFIG, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "intermediate_size": 96,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_little(monkeypatch, tools.bench_peers)


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    return shape_file(tmp_path, SHAPE)


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the Python package {package} is not installed (pip install --group peers)")


def said(capsys: Capture, *words: str | Path) -> str:
    code = main([*map(str, words)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "give --shape FILE"),
        (["--peers", "ollama"], "'ollama' is no peer; there are llama.cpp, torch"),
        (["--peer-python", "torch"], "'torch' is not PEER=FILE"),
        (["--peer-python", "ollama=python"], "'ollama' is no peer"),
        (["--shape", "x", "--dtype", "q4", "--peers", "torch"], "torch has f32, q8"),
        (["--dtype", "q5"], "'q5' is no weight format"),
        (["--shape", "x", "--kv", "int8"], "leave out --kv"),
    ],
)
def test_wrong_usage_is_explained(capsys: Capture, words: list[str], text: str) -> None:
    code, errors = refused_by(main, capsys, *words)
    assert code == 2
    assert text in errors


def test_peers_count_as_memory(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, shape: Path
) -> None:
    # Ours fits (`test_bench.py` has the like), and scratch of llama.cpp's does not.
    monkeypatch.setattr("tools.bench_measure.available_memory_bytes", lambda: 400 << 20)
    words = ["--shape", str(shape), "-p", "0", "-n", "1", "-t", "1"]
    code, errors = refused_by(main, capsys, *words)
    assert code == 1
    assert "error: measuring q8 takes" in errors


@pytest.mark.slow
def test_llama_cpp_is_measured_beside_us(capsys: Capture, shape: Path) -> None:
    need("llama_cpp")
    need("gguf")
    out = said(
        capsys, "--shape", shape, "--dtype", "f32,f16,q8,q4", "-p", "40", "-n", "3",
        "-d", "0,7", "-t", "1,2", "-r", "2", "-o", "json",
    )  # fmt: skip
    result = json.loads(out.splitlines()[-1])
    rows = result["results"]
    named = {(r["test"], r["dtype"], r["depth"], r["threads"]) for r in rows}
    assert len(named) == len(rows) == 2 * 4 * 2 * 2
    for row in rows:
        assert row["peer"] == "llama.cpp"
        assert set(row["settings_tokens_per_s"]) == {"fa off", "fa on"}
        assert row["peer_setting"] in row["settings_tokens_per_s"]
        assert len(row["repeats_peer_tokens_per_s"]) == 2
        assert row["peer_tokens_per_s"] == max(row["settings_tokens_per_s"].values())
        assert 0 < row["ratio"] < math.inf
    assert result["peers"]["llama.cpp"]["llama_cpp_python"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama-llama3", "mistral", "qwen2", "qwen3"])
def test_llama_cpp_takes_every_family(capsys: Capture, tmp_path: Path, family: str) -> None:
    need("llama_cpp")
    need("gguf")
    config = json.loads(Path(f"tests/data/{family}/config.json").read_text())
    # Its qwen2 has no head_dim of its own.
    hidden_size = 32 * config["num_attention_heads"]
    config = {**config, "hidden_size": hidden_size, "intermediate_size": 96, "head_dim": 32}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    words = ("--shape", path, "--exact", "-p", "0", "-n", "2", "-t", "1", "-r", "1", "-o", "csv")
    (row,) = csv.DictReader(said(capsys, *words).splitlines())
    assert float(row["ratio"]) > 0


@pytest.mark.slow
def test_torch_is_measured_beside_us(capsys: Capture, shape: Path) -> None:
    need("torch")
    out = said(
        capsys, "--shape", shape, "--dtype", "f32,q8", "-p", "40", "-n", "3", "-d", "7",
        "-t", "1", "-r", "1", "--peers", "torch", "-o", "csv",
    )  # fmt: skip
    rows = list(csv.DictReader(out.splitlines()))
    named = [row["peer_setting"].split(",")[0] for row in rows]
    assert named == ["f32", "f32", "int8 dynamic", "int8 dynamic"]
    assert all(float(row["ratio"]) > 0 for row in rows)
