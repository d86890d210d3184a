"""`headwise bench` on models of a few kilobytes: what it prints, and what it refuses."""

import csv
import json
import signal
import tracemalloc
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import coordinator.installer
import tools.bandwidth
import tools.bench
import tools.bench_measure
from agent.share import KvFormat
from kernels.errors import ResourceError
from kernels.pool import Pool
from tests.system.bench_commands import measure_little, refused_by, shape_file
from tests.system.processes import Command
from tests.unit.tiny_checkpoint import TINY_CONFIG
from tools.bench_measure import Models, check_memory
from tools.bench_model import BenchModel, Setup, runtime_bytes, weights_bytes
from tools.cli import main
from weights.demo import demo_path
from weights.directory import ModelDirectory
from weights.random_model import (
    convert_random,
    making_bytes,
    random_manifest,
    random_weights,
)

Capture = pytest.CaptureFixture[str]

ROW_FIELDS = {
    "test", "dtype", "depth", "threads", "tokens_per_s", "bytes_per_s", "bandwidth_fraction",
    "cache_resident",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_little(monkeypatch, tools.bench)


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    return shape_file(tmp_path, TINY_CONFIG)


def said(capsys: Capture, *words: str | Path) -> str:
    assert main(["bench", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys: Capture, *words: str | Path) -> tuple[int, str]:
    return refused_by(main, capsys, "bench", *words)


def test_json_has_a_row_for_every_configuration(capsys: Capture, shape: Path) -> None:
    out = said(
        capsys, "--shape", shape, "--dtype", "q8,q4", "-p", "70", "-n", "3", "-d", "0,5",
        "-t", "1,2", "-r", "2", "-o", "json",
    )  # fmt: skip
    result = json.loads(out.splitlines()[-1])
    rows = result["results"]
    named = [(r["test"], r["dtype"], r["depth"], r["threads"]) for r in rows]
    assert len(set(named)) == len(named) == 2 * 2 * 2 * 2
    assert {name[0] for name in named} == {"pp70", "tg3"}
    for r in rows:
        assert set(r) >= ROW_FIELDS
        assert r["tokens_per_s"] > 0
        assert r["bytes_per_s"] > 0
        assert r["bandwidth_fraction"] > 0
        assert r["cache_resident"] is True
        assert len(r["repeats_tokens_per_s"]) == 2
    assert result["start_s"] > 0
    assert result["kernel_cache"] in ("cold", "warm")


@pytest.mark.slow  # one more specialisation of the kernels
def test_int8_keys_and_values_are_measured(capsys: Capture, shape: Path) -> None:
    words = ["--shape", shape, "--dtype", "q4", "-p", "70", "-n", "3", "-t", "2", "-r", "1"]
    result = json.loads(said(capsys, *words, "--kv", "int8", "-o", "json").splitlines()[-1])
    assert (result["kv"], result["exact"]) == ("int8", False)
    assert all(row["tokens_per_s"] > 0 for row in result["results"])


def test_csv_and_markdown(capsys: Capture, shape: Path) -> None:
    words = ["--shape", shape, "--exact", "-p", "0", "-n", "2", "-t", "1", "-r", "1"]
    (row,) = csv.DictReader(said(capsys, *words, "-o", "csv").splitlines())
    assert set(row) >= ROW_FIELDS
    assert row["test"] == "tg2"
    start, head, rule, line = said(capsys, *words).splitlines()
    assert start.startswith("first kernel result ")
    assert head.startswith("| test ")
    assert set(rule) <= set("|- :")
    assert line.split()[1] == "tg2"


def test_a_model_directory_is_measured_as_it_is(capsys: Capture) -> None:
    out = said(capsys, "-m", demo_path(), "-p", "2", "-n", "0", "-t", "1", "-r", "1", "-o", "json")
    result = json.loads(out)
    (row,) = result["results"]
    manifest = ModelDirectory.open(demo_path()).manifest
    assert (row["test"], row["dtype"]) == ("pp2", manifest.dtype)
    assert (result["model"], result["weights"]) == (manifest.name, "mapped")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--dtype", "q5"], "'q5' is no weight format"),
        (["--dtype", "q8,"], "'' is no weight format"),
        (["-r", "0"], "0 is not possible"),
        (["-t", "0"], "0 is not possible"),
        (["-t", "1000000"], "1000000 is not possible"),
        (["-p", "5x"], "'5x' is no whole number"),
        (["-n", "-3"], "argument -n/--gen-tokens"),
        (["-d", "1,,2"], "'' is no whole number"),
        (["-n", "9" * 5000], "is no whole number"),
        (["-ub", "513"], "513 is not possible"),
        (["-o", "xml"], "invalid choice: 'xml'"),
        (["--kv", "q8"], "invalid choice: 'q8'"),
        (["-p", "0", "-n", "0"], "nothing to measure"),
        (["--dtype", "q8", "-m", "x"], "several go with --shape"),
        (["--shape", "x", "-m", "x"], "not allowed with argument"),
    ],
)
def test_wrong_usage_is_explained(capsys: Capture, words: list[str], text: str) -> None:
    code, error = refused(capsys, *words)
    assert code == 2
    assert text in error


def test_models_that_are_not_there_are_named(capsys: Capture, tmp_path: Path) -> None:
    code, error = refused(capsys, "--shape", tmp_path / "config.json")
    assert code == 1
    assert error.startswith("error: ")
    assert str(tmp_path / "config.json") in error
    (tmp_path / "config.json").write_text("{}")
    assert refused(capsys, "--shape", tmp_path / "config.json")[0] == 1
    code, error = refused(capsys, "-m", tmp_path / "model")
    assert code == 1
    assert "is not a headwise model directory" in error


def test_what_does_not_fit_is_refused_before_it_is_made(capsys: Capture, tmp_path: Path) -> None:
    huge = {"hidden_size": 1 << 16, "num_hidden_layers": 1000, "intermediate_size": 1 << 18}
    (tmp_path / "config.json").write_text(json.dumps({**TINY_CONFIG, **huge, "head_dim": 128}))
    code, error = refused(capsys, "--shape", tmp_path / "config.json")
    assert code == 1
    assert error.startswith("error: measuring q8 takes ")


def test_contexts_count_as_memory(monkeypatch: pytest.MonkeyPatch, shape: Path) -> None:
    models, cache_bytes = Models.random(shape, ("q8",)), 1 << 20
    free_bytes = 700 << 20
    monkeypatch.setattr(tools.bench_measure, "available_memory_bytes", lambda: free_bytes)
    check_memory(models, Setup(64, 1 << 16, False), [1], cache_bytes)
    for threads, tokens in (([1], 1 << 23), (list(range(1, 90)), 1 << 16)):
        with pytest.raises(ResourceError, match="shorter contexts"):
            check_memory(models, Setup(64, tokens, False), threads, cache_bytes)


def test_impossible_figures_end_the_command(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, shape: Path
) -> None:
    # As if nothing were cached, and memory were slower than anything.
    monkeypatch.setattr(tools.bench, "last_level_cache_bytes", lambda: 1)
    monkeypatch.setattr(tools.bench_measure.ReadBuffer, "bytes_per_s", lambda *_: 1.0)
    assert main(["bench", "--shape", str(shape), "-p", "0", "-n", "1", "-r", "1"]) == 1
    assert "error: error of measurement: tg1 q8" in capsys.readouterr().err


def test_ctrl_c_ends_it(shape: Path) -> None:
    words = ("bench", "--shape", shape, "-n", "500000", "-t", "2", "-v")
    with Command(*words) as command:
        command.until("stdout", "first kernel result")
        command.signal(signal.SIGINT)
        assert command.wait() == 130
        assert "Traceback" not in command.stderr


def test_interpreted_kernels_are_not_measured(shape: Path) -> None:
    with Command("bench", "--shape", shape, env={"NUMBA_DISABLE_JIT": "1"}) as command:
        assert command.wait() == 1
    assert command.stderr.startswith("error: NUMBA_DISABLE_JIT is set")


def test_prompts_come_in_calls_as_a_coordinator_sends_them() -> None:
    assert coordinator.installer.MAX_ROWS == tools.bench.PREFILL_ROWS


def test_random_weights_in_memory_are_those_of_a_model_on_disk(shape: Path, tmp_path: Path) -> None:
    # A tied model has the same atoms, and both draw them in the same order.
    tied = tmp_path / "tied.json"
    tied.write_text(json.dumps({**TINY_CONFIG, "tie_word_embeddings": True}))
    convert_random(tied, tmp_path / "model", "q8", seed=3)
    stored = ModelDirectory.open(tmp_path / "model")
    manifest = random_manifest(shape, "q8", seed=3)
    made = random_weights(manifest, seed=3)
    assert made.size == manifest.weights_bytes
    assert made.ctypes.data % 4096 == 0
    for section in manifest.sections:
        n_bytes = section.stride_bytes * len(section.hashes)
        other = stored.manifest.section(section.kind, section.layer)
        assert other.offset_bytes == section.offset_bytes
        here = made[section.offset_bytes :][:n_bytes]
        assert np.array_equal(here, stored.weights[section.offset_bytes :][:n_bytes])


@pytest.mark.parametrize("dtype", ["f32", "q4"])
def test_making_weights_takes_no_more_than_it_says(
    tmp_path: Path, dtype: Literal["f32", "q4"]
) -> None:
    # One head group of nine million numbers, and no matrix fills whole tiles.
    odd = {"hidden_size": 2050, "num_attention_heads": 20, "num_key_value_heads": 1}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**TINY_CONFIG, **odd, "head_dim": 102}))
    manifest = random_manifest(path, dtype)
    tracemalloc.start()
    try:
        store = random_weights(manifest)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes - store.nbytes <= making_bytes(manifest.geometry)


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
def test_bytes_count_weights_once_a_call_and_the_context(shape: Path, kv: KvFormat) -> None:
    manifest, setup = random_manifest(shape, "q4"), Setup(8, 40, True, kv)
    model = BenchModel(manifest, random_weights(manifest), setup, Pool(1))
    g = manifest.geometry
    row_bytes = {"f32": 4 * g.head_dim, "f16": 2 * g.head_dim, "int8": g.head_dim + 4}[kv]
    all_bytes, kv_bytes = weights_bytes(manifest), 2 * g.n_layers * g.n_kv_heads * row_bytes
    vocab_bytes = g.n_vocab_atoms * g.vocab_bytes
    assert model.decode_bytes(5, 3) == 3 * all_bytes + (6 + 7 + 8) * kv_bytes
    # 20 tokens in calls of 8: contexts of 8 + 5, 16 + 5 and 20 + 5.
    expected = 3 * all_bytes - 2 * vocab_bytes + (13 + 21 + 25) * kv_bytes
    assert model.prefill_bytes(5, 20) == expected
    assert runtime_bytes(manifest, setup) >= model_bytes(model)


def model_bytes(model: BenchModel) -> int:
    """What the kernels of a model hold besides weights, found in its parts."""
    member: Any = model._member
    scratch = member.kernels._arrays[5]
    return int(member.kv.pages.nbytes + scratch.nbytes)
