"""Stop strings: the text does not depend on how it was cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.stops import StopMatcher
from kernels.errors import PromptError


def oracle(text: str, stops: list[str]) -> tuple[str, bool]:
    """Cut the text where the first stop string is complete; the longest of those counts."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


def feed(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    out, stopped = "", False
    for piece in pieces:
        text, stopped = matcher.push(piece)
        out += text
    return out + matcher.flush(), stopped


@given(
    pieces=st.lists(st.text("abcé", max_size=5), max_size=12),
    stops=st.lists(st.text("abcé", min_size=1, max_size=4), max_size=4),
)
def test_text_is_cut_at_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    assert feed(pieces, stops) == oracle("".join(pieces), stops)


@given(
    text=st.text("ab\n", max_size=30),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4),
    data=st.data(),
)
def test_nothing_held_back_longer_than_needed(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    """After every piece, what is not yet emitted may still begin a stop string."""
    matcher, at, emitted = StopMatcher(stops), 0, ""
    while at < len(text):
        n = data.draw(st.integers(1, 5))
        out, stopped = matcher.push(text[at : at + n])
        at = min(len(text), at + n)
        emitted += out
        if stopped:
            return
        held = text[len(emitted) : at]
        assert not held or any(s.startswith(held) and s != held for s in stops)


def test_stop_across_pieces_and_after() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("Hello\n") == ("Hello", False)
    assert matcher.push("\nUse") == ("", False)
    assert matcher.push("r: next") == ("", True)
    assert matcher.matched == "\n\nUser:"
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""


def test_false_alarm_is_released() -> None:
    matcher = StopMatcher(["aab"])
    assert matcher.push("aa") == ("", False)
    # "aaa": the first a is free, "aa" may still begin "aab".
    assert matcher.push("a") == ("a", False)
    assert matcher.push("c") == ("aac", False)
    assert matcher.matched is None


def test_flush_gives_what_was_held() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("the EN") == ("the ", False)
    assert matcher.flush() == "EN"
    assert matcher.flush() == ""


def test_no_stops_lets_everything_through() -> None:
    assert StopMatcher([]).push("anything") == ("anything", False)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(PromptError) as e:
        StopMatcher(["a", ""])
    assert str(e.value) == ("a stop string is empty; give at least one character, or no --stop")
