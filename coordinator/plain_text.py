"""Texts that others wrote, made fit for terminals, logs and tables. Pure.

An agent may send what it likes: escape sequences that move a terminal's cursor, line ends that
forge a log line, a megabyte. So its texts are cleaned once, where its messages are read.
"""

import math

import msgspec

from agent.ids import AgentName
from agent.messages import AgentMessage, Bye, Failed, Heartbeat, Hello
from agent.migration_messages import MoveFailed

__all__ = ["MAX_REASON_CHARS", "clean", "one_line"]

MAX_REASON_CHARS = 1000
MAX_WORD_CHARS = 64
# Nobody waits longer for a link; whoever says so has a broken clock.
MAX_ROUND_TRIP_S = 60.0


def one_line(text: str, max_chars: int | None = None) -> str:
    """Return a text whose every character can be seen, and at most so many of them.

    What passes for another line, moves a cursor or turns the direction of writing is escaped; a
    text that is cut ends in an ellipsis.
    """
    # No need to escape a megabyte of which a line is kept.
    head = text if max_chars is None else text[: max_chars + 1]
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    if max_chars is None or len(shown) <= max_chars:
        return shown
    return shown[:max_chars] + "…"


def clean(message: AgentMessage) -> AgentMessage:
    """Return a message of an agent with all that people will read of it made fit to be read."""
    match message:
        case Hello(name, _, versions):
            software = one_line(versions.software, MAX_WORD_CHARS)
            return msgspec.structs.replace(
                message,
                # What is escaped or cut is no valid name, so it is refused as it would have been.
                name=AgentName(one_line(name, MAX_WORD_CHARS)),
                versions=msgspec.structs.replace(versions, software=software),
                machine=one_line(message.machine, MAX_WORD_CHARS),
            )
        case Heartbeat(round_trip_s=seconds) if seconds is not None:
            sane = math.isfinite(seconds) and 0.0 <= seconds <= MAX_ROUND_TRIP_S
            return message if sane else msgspec.structs.replace(message, round_trip_s=None)
        case Failed() | Bye() | MoveFailed():
            reason = one_line(message.reason, MAX_REASON_CHARS)
            return msgspec.structs.replace(message, reason=reason)
    return message
