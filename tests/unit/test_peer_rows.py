"""What a comparison makes of its repeats: the better setting, ratios, tables."""

import csv
import io
import json

import pytest

from tools.bench import json_line
from tools.bench_rows import Case, Sample, csv_table
from tools.peer_rows import PeerSetting, Repeat, md_peer_table, peer_rows

CASE = Case("tg", 16, "q8", 256, 4)
OFF, ON = PeerSetting("llama.cpp", "fa off"), PeerSetting("llama.cpp", "fa on")
TORCH = PeerSetting("torch", "f32")
# Ours runs at 16, 8 and 4 tokens a second.
OURS_S = (1.0, 2.0, 4.0)


def repeats(*theirs: tuple[PeerSetting, tuple[float, ...]]) -> list[Repeat]:
    """Three repeats; a setting's seconds are given in their order."""
    return [
        Repeat(Sample(ours_s, 100, 100.0), {key: seconds[i] for key, seconds in theirs})
        for i, ours_s in enumerate(OURS_S)
    ]


def test_the_setting_with_the_better_median_counts() -> None:
    # `fa off` has the fastest single repeat, and the fastest mean.
    (row,) = peer_rows(CASE, repeats((OFF, (0.5, 8.0, 8.0)), (ON, (4.0, 4.0, 4.0))), 1000, 10)
    assert (row.peer, row.peer_setting) == ("llama.cpp", "fa on")
    assert row.peer_tokens_per_s == 4
    assert row.settings_tokens_per_s == {"fa off": 2, "fa on": 4}
    assert row.repeats_peer_tokens_per_s == (4, 4, 4)
    assert row.peer_spread == 0


def test_a_ratio_is_the_median_of_each_repeats_own() -> None:
    # 8, 1 and 2: their median is not the ratio of the medians, 8 / 4.
    (row,) = peer_rows(CASE, repeats((ON, (8.0, 2.0, 8.0))), 1000, 10)
    assert row.repeats_tokens_per_s == (16, 8, 4)
    assert row.repeats_peer_tokens_per_s == (2, 8, 2)
    assert row.ratio == 2
    (row,) = peer_rows(CASE, repeats((ON, (1.0, 8.0, 12.0))), 1000, 10)
    assert row.ratio == 3
    assert row.tokens_per_s / row.peer_tokens_per_s == 4


def test_every_peer_has_a_row_beside_the_same_figures_of_ours() -> None:
    theirs = (OFF, (2.0, 2.0, 2.0)), (ON, (4.0, 4.0, 4.0)), (TORCH, (1.0, 1.0, 1.0))
    llama, torch = peer_rows(CASE, repeats(*theirs), 1000, 10)
    assert (llama.peer, llama.peer_setting, llama.ratio) == ("llama.cpp", "fa off", 1)
    assert (torch.peer, torch.peer_setting, torch.ratio) == ("torch", "f32", 0.5)
    assert set(torch.settings_tokens_per_s) == {"f32"}
    for row in (llama, torch):
        assert (row.test, row.dtype, row.depth, row.threads) == ("tg16", "q8", 256, 4)
        assert row.tokens_per_s == 8
        assert not row.cache_resident


def test_the_forms_name_peer_setting_and_ratio() -> None:
    rows = peer_rows(CASE, repeats((ON, (4.0, 4.0, 4.0))), 1000, 10)
    (read,) = csv.DictReader(io.StringIO(csv_table(rows)))
    assert (read["peer"], read["peer_setting"], read["ratio"]) == ("llama.cpp", "fa on", "2.0")
    assert not any(name.startswith("repeats_") for name in read)
    head, _, line = md_peer_table(rows).splitlines()
    assert head.split("|")[-2].strip() == "ratio"
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[-5:] == ["llama.cpp", "fa on", "4.00", "0 %", "2.00"]
    (result,) = json.loads(json_line({"model": "m"}, rows))["results"]
    assert result["ratio"] == 2
    assert result["tokens_per_s"] == 8
    assert result["peer_tokens_per_s"] == pytest.approx(4)
