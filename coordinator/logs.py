"""Log lines of the long-lived coordinator: text, or one JSON object a line.

Messages are written as `what happened key=value key=value`; JSON lines carry the pairs as fields
too, the first of each key. Which request a line is about comes from `about`, so that also the
engine's warnings say it. Prompts and generated texts are never
logged.
"""

import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar

from coordinator.plain_text import one_line

__all__ = ["about", "set_up"]

_PAIR = re.compile(r"(?<![^\s(])([a-z][a-z0-9_]*)=(\S+)")
_INT = re.compile(r"-?\d{1,18}")
_FLOAT = re.compile(r"-?\d+\.\d+(e[-+]?\d+)?")
# Fields of the line itself, which a message cannot set.
_OWN = ("time", "level", "logger", "event", "trace")

_about: ContextVar[dict[str, int] | None] = ContextVar("about", default=None)


def set_up(as_json: bool, level: int) -> None:
    """Log to stderr from `level` on, in place of what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


@contextlib.contextmanager
def about(**fields: int) -> Iterator[None]:
    """Add fields, such as request=3, to every line that this thread logs meanwhile."""
    token = _about.set({**(_about.get() or {}), **fields})
    try:
        yield
    finally:
        _about.reset(token)


class _TextFormatter(logging.Formatter):
    """A line for people: time, level, logger, message, what it is about."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        pairs = [f"{key}={value}" for key, value in (_about.get() or {}).items()]
        record.message = " ".join([one_line(record.message), *pairs])
        return super().formatMessage(record)


class _JsonFormatter(logging.Formatter):
    """A line for machines; times are UTC."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        found: dict[str, object] = {}
        for key, text in _PAIR.findall(message):
            # The first pair is ours; a later one may stand in what an agent wrote.
            if key not in _OWN:
                found.setdefault(key, _value(text))
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": message,
            **found,
            **(_about.get() or {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _value(text: str) -> int | float | str:
    text = text.rstrip(",;:.)")
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
