"""What a simulated coordinator hears, and when."""

from tools.simulation.load_sensors import Sensors
from tools.simulation.load_setting import BoardState, LoadSetting

SETTING = LoadSetting(bytes_per_s=(4e9, 4e9), beat_s=0.4, sample_s=0.1)


def state(*rates: float) -> BoardState:
    return BoardState(rates, (1,) * len(rates))


def test_heartbeats_come_in_turn_and_changes_at_once() -> None:
    sensors, heard = Sensors(SETTING), []
    for k in range(1, 13):
        rates = (4e9, 4e9) if k < 8 else (4e9, 1.4e9)
        heard += [(k, *x) for x in sensors.hear(state(*rates), 0.1 * k)]
    assert [k for k, name, _ in heard if name == "board-0"] == [2, 6, 10]
    # At 8 a beat is due anyway; it tells the change.
    assert [(k, rate) for k, name, rate in heard if name == "board-1"] == [
        (4, 4e9), (8, 1.4e9), (12, 1.4e9),
    ]  # fmt: skip
    assert sensors.hear(state(1e9, 1.4e9), 1.3) == [("board-0", 1e9)]


def test_what_is_told_arrives_later_if_it_takes_time() -> None:
    sensors = Sensors(LoadSetting(bytes_per_s=(4e9,), beat_s=0.4, sample_s=0.1, notice_s=0.2))
    heard = [sensors.hear(state(4e9), 0.1 * k) for k in range(1, 11)]
    assert [k for k, x in enumerate(heard, 1) if x] == [6, 10]


def test_a_board_that_is_away_tells_nothing_and_no_news_when_it_is_back() -> None:
    sensors = Sensors(SETTING)
    assert sensors.hear(state(4e9, 4e9), 0.4) == [("board-0", 4e9), ("board-1", 4e9)]
    assert sensors.hear(state(4e9, 0.0), 0.5) == []
    assert sensors.hear(state(4e9, 1e9), 0.6) == []
    assert sensors.hear(state(4e9, 1e9), 0.8) == [("board-0", 4e9), ("board-1", 1e9)]
