"""The verb `headwise simulate paper`: its three outputs and its refusals."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools import cli
from tools.simulation.paper_runs import BASELINES, OURS

SMALL = [
    "simulate", "paper", "--seeds", "2", "--seed", "3", "--tokens", "4", "--devices", "3,6",
    "-j", "1",
]  # fmt: skip


def test_json_is_one_object_with_a_row_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL, "-o", "json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["setting"], report["seed"], report["seeds"]) == ("paper", 3, 2)
    parts = Counter((row["part"], row["devices"]) for row in report["rows"])
    # Six devices are too many for the hindsight optimum.
    assert set(parts) == {("frozen", 3), ("frozen", 6), ("run", 3), ("run", 6), ("small-run", 3)}
    assert set(parts.values()) == {len(BASELINES) + 1}
    frozen = {r["algorithm"]: r for r in report["rows"] if r["part"] == "frozen"}
    assert frozen[OURS]["over_optimum"] == 0.0
    assert frozen["greedy"]["over_optimum"] > 0.1
    greedy = next(m for m in report["memory"] if m["algorithm"] == "greedy" and m["devices"] == 3)
    # All blocks are on the first device, which has room for them.
    assert greedy["held_mb"][0] == pytest.approx(sum(greedy["held_mb"]))
    assert greedy["held_mb"][0] < greedy["have_mb"][0]


def test_a_seed_determines_everything(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for seed in ("5", "5", "6"):
        assert cli.main([*SMALL, "--devices", "3", "--seed", seed, "-o", "csv"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    rows = list(csv.DictReader(io.StringIO(outputs[0])))
    assert {row["algorithm"] for row in rows} == {*BASELINES, OURS}


def test_markdown_says_where_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    # 2 to 8 GB times 0.02: ffn alone takes 134 MB, proj 17 and the heads 50.
    assert cli.main([*SMALL, "--memory-scale", "0.02"]) == 0
    text = capsys.readouterr().out
    assert "| headwise " in text
    assert "fit" in text


def test_plots_are_written_for_each_number_of_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*SMALL, "--plots", str(tmp_path / "plots"), "-o", "csv"]) == 0
    names = {f.stem for f in (tmp_path / "plots").iterdir()}
    kinds = ("latency", "moves", "memory")
    assert names == {f"paper-{n}-{kind}" for n in (3, 6) for kind in kinds}
    latency = ElementTree.parse(tmp_path / "plots" / "paper-3-latency.svg").getroot()
    curves = {e[0].text: str(e.get("points")).split() for e in latency.iter() if e.get("points")}
    assert OURS in curves
    # The start and four tokens.
    assert {len(points) for points in curves.values()} == {5}
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    assert cli.main([*SMALL, "--plots", str(tmp_path / "file")]) == 2
    assert "error: --plots" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--devices", "3,x"], ["--devices", "0"], ["--seeds", "0"], ["--width", "100"],
     ["--seed", "-1"], ["--memory-scale", "nan"]],
)  # fmt: skip
def test_wrong_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "paper", *words]) == 2
    assert words[0] in capsys.readouterr().err
