"""How much of a link rows may take that are copied while texts are written."""

from agent.window import NARROW_BYTES
from coordinator.moves import rows_window_bytes


def test_rows_take_a_small_part_of_what_a_link_carries_in_a_phase() -> None:
    assert rows_window_bytes(0.020, 117e6) == 234_000
    assert rows_window_bytes(0.020, 11.7e6) == 23_400
    # Never less than what weights may take; nothing is known before the first step.
    assert rows_window_bytes(0.0005, 117e6) == NARROW_BYTES
    assert rows_window_bytes(0.0, 117e6) == NARROW_BYTES
