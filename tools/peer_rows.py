"""What a comparison found: repeats of both sides in, rows with ratios and printed forms out. Pure.

A peer may be measured in several settings; a row holds the one with the best median.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from tools.bench_rows import MD_HEAD, Case, Row, Sample, markdown, md_cells, summarise

__all__ = ["PeerRow", "PeerSetting", "Repeat", "md_peer_table", "peer_rows"]


class PeerSetting(NamedTuple):
    """One way to run a peer."""

    peer: str
    setting: str


class Repeat(NamedTuple):
    """A case measured once on all sides, one right after the other: ours, and seconds of each."""

    ours: Sample
    peers_s: Mapping[PeerSetting, float]


class PeerRow(Row, frozen=True):
    """The result of one case next to one peer: medians over the same repeats.

    Attributes:
        peer_setting: the one with the best median of peer_tokens_per_s.
        peer_spread: (largest - smallest) / median of peer_tokens_per_s.
        ratio: median of each repeat's tokens_per_s over the peer's in that setting.
        settings_tokens_per_s: medians of the peer in all its settings.
    """

    peer: str
    peer_setting: str
    peer_tokens_per_s: float
    peer_spread: float
    ratio: float
    settings_tokens_per_s: dict[str, float]
    repeats_peer_tokens_per_s: tuple[float, ...]


def peer_rows(
    case: Case, repeats: Sequence[Repeat], weights_bytes: int, cache_bytes: int
) -> list[PeerRow]:
    """Return a row for each peer, in the order of the first repeat."""
    row = summarise(case, [repeat.ours for repeat in repeats], weights_bytes, cache_bytes)
    speeds = {
        key: tuple(case.n_tokens / repeat.peers_s[key] for repeat in repeats)
        for key in repeats[0].peers_s
    }
    return [_row(row, peer, speeds) for peer in dict.fromkeys(key.peer for key in speeds)]


def _row(row: Row, peer: str, speeds: Mapping[PeerSetting, tuple[float, ...]]) -> PeerRow:
    medians = {key.setting: statistics.median(speeds[key]) for key in speeds if key.peer == peer}
    best = max(medians, key=lambda setting: medians[setting])
    theirs = speeds[PeerSetting(peer, best)]
    return PeerRow(
        **msgspec.structs.asdict(row),
        peer=peer,
        peer_setting=best,
        peer_tokens_per_s=medians[best],
        peer_spread=(max(theirs) - min(theirs)) / medians[best],
        ratio=statistics.median(
            our / their for our, their in zip(row.repeats_tokens_per_s, theirs, strict=True)
        ),
        settings_tokens_per_s=medians,
        repeats_peer_tokens_per_s=theirs,
    )


def md_peer_table(rows: Sequence[PeerRow]) -> str:
    """Return the rows as a Markdown table."""
    head = (*MD_HEAD, "peer", "setting", "its tokens/s", "its spread", "ratio")
    return markdown([head, *((*md_cells(row), *_peer_cells(row)) for row in rows)])


def _peer_cells(row: PeerRow) -> tuple[str, ...]:
    return (
        row.peer, row.peer_setting, f"{row.peer_tokens_per_s:.2f}",
        f"{100 * row.peer_spread:.0f} %", f"{row.ratio:.2f}",
    )  # fmt: skip
