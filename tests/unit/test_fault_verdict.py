"""What became of streams and processes under faults, judged on made-up cases."""

import pytest

from tools.faults.schedule import Aim, Fault, Kind
from tools.faults.verdict import (
    SPARE_BYTES,
    SPARE_FDS,
    Ending,
    Holding,
    Stream,
    Strike,
    Verdict,
    grown,
    judge,
    summary,
)

WANTED = (5, 6, 7, 8)


def stream(
    ending: Ending,
    tokens: tuple[int, ...] = WANTED,
    result: tuple[int, ...] | None = None,
    sufficed: bool = True,
) -> Stream:
    return Stream(1, ending, tokens, result, WANTED, sufficed)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (stream(Ending.FINISHED, WANTED, WANTED), Verdict.FINISHED),
        # A token that is missing, doubled, wrong, or only wrong in the last message.
        (stream(Ending.FINISHED, (5, 6, 7), (5, 6, 7)), Verdict.MISMATCHED),
        (stream(Ending.FINISHED, (5, 6, 6, 7, 8), WANTED), Verdict.MISMATCHED),
        (stream(Ending.FINISHED, (5, 6, 7, 9), (5, 6, 7, 9)), Verdict.MISMATCHED),
        (stream(Ending.FINISHED, WANTED, (5, 6, 7, 9)), Verdict.MISMATCHED),
        (stream(Ending.FINISHED, (*WANTED, 9), (*WANTED, 9)), Verdict.MISMATCHED),
        (stream(Ending.FAILED, (5, 6)), Verdict.FAILED_THOUGH),
        (stream(Ending.FAILED, ()), Verdict.FAILED_THOUGH),
        (stream(Ending.FAILED, (5, 6), sufficed=False), Verdict.FAILED_CLEANLY),
        # Wrong words are no clean failure, and silence is none either.
        (stream(Ending.FAILED, (5, 9), sufficed=False), Verdict.MISMATCHED),
        (stream(Ending.SILENT, (5, 6)), Verdict.LOST),
        (stream(Ending.SILENT, (5, 6), sufficed=False), Verdict.LOST),
        (stream(Ending.SILENT, (9,)), Verdict.MISMATCHED),
    ],
)
def test_streams_are_judged_by_their_tokens_and_their_end(found: Stream, verdict: Verdict) -> None:
    assert judge(found) is verdict


def test_only_growth_beyond_what_is_spared_leaks() -> None:
    before = {"a": Holding(10, 5, 100 << 20), "b": Holding(10, 5, 100 << 20, 1)}
    spared = Holding(10 + SPARE_FDS, 5, (125 << 20) + SPARE_BYTES)
    assert grown(before, {"a": spared, "b": before["b"], "guest": Holding(99, 99, 1 << 40)}) == []
    assert grown(before, {"a": Holding(2, 1, 1)}) == []
    worse = {
        "a": Holding(11 + SPARE_FDS, 6, (125 << 20) + SPARE_BYTES + 1),
        "b": Holding(10, 5, 0, 2),
    }
    assert [text.split(",")[0] for text in grown(before, worse)] == [
        "a: 15 open files", "a: 6 threads", "a: 157 MiB of memory", "b: 2 child processes",
    ]  # fmt: skip


def strike(
    kind: Kind,
    aim: Aim = Aim.DECODE,
    streams: tuple[int, ...] = (1,),
    in_prefill: bool = False,
    in_move: bool = False,
    sufficed: bool = True,
) -> Strike:
    fault = Fault(1, kind, aim, 3, 0.5, 1.0, 0.0)
    return Strike(fault, "board-1", streams, in_prefill, in_move, sufficed)


def test_the_report_counts_what_struck_running_streams_while_survivors_sufficed() -> None:
    strikes = [
        strike(Kind.KILL, in_prefill=True),
        strike(Kind.KILL, Aim.MOVE, in_prefill=True, in_move=True),
        strike(Kind.CUT, Aim.MOVE, in_move=True),
        strike(Kind.JOIN, streams=(), in_move=True),
        strike(Kind.SLOW, in_prefill=True, sufficed=False),
    ]
    ended = [stream(Ending.FINISHED, WANTED, WANTED)] * 3 + [stream(Ending.FAILED)]
    report = summary(strikes, ended, ["a: 3 threads, 2 before"])
    assert report == {
        "faults": 5, "faults_on_running_streams": 3, "streams_finished": 3,
        "streams_failed_cleanly": 0, "failed_though_survivors_sufficed": 1, "mismatched": 0,
        "lost": 0, "leaked": 1,
        "by_kind": {"kill": 2, "freeze": 0, "cut": 1, "slow": 0, "drain": 0, "join": 0},
        "in_prefill": 2, "in_move": 2, "in_prefill_or_move": 3,
        "aimed": {"decode": 3, "prefill": 0, "move": 2}, "not_sufficing": 1,
    }  # fmt: skip


def test_the_least_holding_is_taken_figure_by_figure() -> None:
    assert Holding(3, 9, 5, 0).least(Holding(4, 8, 5, 1)) == Holding(3, 8, 5, 0)
