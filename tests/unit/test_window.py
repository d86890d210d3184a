import pytest

from agent.window import CHUNK_BYTES, CREDITS, MAX_PAUSE_S, NARROW_BYTES, PAUSE, Window


def test_the_window_is_wide_until_a_holder_asks_for_less():
    window = Window()
    assert (window.chunk_bytes, window.credits) == (CHUNK_BYTES, CREDITS)
    window.on_reply(0, 1.0, 1.1)
    assert (window.chunk_bytes, window.credits) == (CHUNK_BYTES, CREDITS)
    assert window.not_before_s < 0


@pytest.mark.parametrize("hint_bytes", [1, 4096, NARROW_BYTES, 100_000, 1 << 19, 1 << 40])
def test_a_hint_is_never_exceeded_by_more_than_the_smallest_chunk(hint_bytes):
    window = Window()
    window.on_reply(hint_bytes, 1.0, 1.1)
    assert window.credits >= 1
    assert window.chunk_bytes * window.credits <= max(hint_bytes, 4096)
    assert window.chunk_bytes * window.credits <= CHUNK_BYTES * CREDITS


def test_the_link_rests_in_proportion_to_the_time_that_a_chunk_took():
    window = Window()
    window.on_reply(NARROW_BYTES, 5.0, 5.01)
    assert window.not_before_s == pytest.approx(5.01 + PAUSE * 0.01)
    window.on_reply(NARROW_BYTES, float("-inf"), 6.0)
    assert window.not_before_s == 6.0 + MAX_PAUSE_S


def test_the_window_opens_again():
    window = Window()
    window.on_reply(NARROW_BYTES, 5.0, 5.1)
    window.on_reply(0, 6.0, 6.1)
    assert (window.chunk_bytes, window.credits) == (CHUNK_BYTES, CREDITS)
    assert window.not_before_s < 6.1
