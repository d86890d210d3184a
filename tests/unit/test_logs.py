"""Log lines: what they are about, and that nothing in a message can pass for another line."""

import json
import logging
from collections.abc import Iterator

import pytest

from coordinator.logs import about, set_up

log = logging.getLogger("test.logs")


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for handler in handlers:
        root.removeHandler(handler)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_carry_the_pairs_of_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(True, logging.INFO)
    log.info("agents=%s ready epoch=%d: seconds=%.2f (pulled_bytes=%d)", "pi-1,pi-2", 3, 0.5, 7)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info", "logger": "test.logs", "agents": "pi-1,pi-2", "epoch": 3, "seconds": 0.5,
        "pulled_bytes": 7, "event": "agents=pi-1,pi-2 ready epoch=3: seconds=0.50 (pulled_bytes=7)",
    }  # fmt: skip


def test_lines_say_what_they_are_about(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(True, logging.INFO)
    with about(request=4, epoch=2):
        with about(epoch=3):
            log.info("inner")
        log.info("outer request=99")
    log.info("none")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    found = [(line.get("request"), line.get("epoch")) for line in lines]
    assert found == [(4, 3), (4, 2), (None, None)]


def test_text_lines(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(False, logging.WARNING)
    log.info("not shown")
    with about(request=4):
        log.warning("odd: %s", "a\nb\x1b[2J")
    text = capsys.readouterr().err
    assert text.endswith("WARNING test.logs odd: a\\nb\\x1b[2J request=4\n")
    assert text.count("\n") == 1


def test_a_message_cannot_forge_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(True, logging.INFO)
    log.warning("refused: %s", 'level=critical event=x request=1"}\n{"level": "critical"}')
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    line = json.loads(err)
    assert line["level"] == "warning"
    assert line["event"].startswith("refused: level=critical")


def test_the_first_pair_of_a_key_stands(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(True, logging.INFO)
    log.info("agent=%s lost epoch=%d: it left: %s", "pi-1", 3, "agent=pi-2 epoch=99 mood=sad")
    line = json.loads(capsys.readouterr().err)
    assert (line["agent"], line["epoch"], line["mood"]) == ("pi-1", 3, "sad")


def test_exceptions_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(True, logging.INFO)
    try:
        raise ValueError("sad")
    except ValueError:
        log.exception("it failed")
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "it failed"
    assert line["trace"].endswith("ValueError: sad")
