"""What is said on the admin socket: one JSON object a line, typed and checked by msgspec.

A client asks one thing a connection; the coordinator answers with any number of lines, the last
of which is `Finished`, `Status`, `LivePlan`, `Done` or `Failed`. The tag field `type` names the
message; new fields take defaults. Does not know sockets.
"""

from typing import TypeVar

import msgspec

from agent.ids import AgentName
from coordinator.plan import Plan
from coordinator.results import Result
from coordinator.sampling import SamplingOptions
from coordinator.status import AgentStatus, Status
from kernels.errors import WireError

__all__ = [
    "MAX_QUESTION_BYTES",
    "MAX_REPLY_BYTES",
    "AgentStatus",
    "Began",
    "Cordon",
    "Done",
    "Drain",
    "Failed",
    "Finished",
    "Generate",
    "GetPlan",
    "GetStatus",
    "LivePlan",
    "Notice",
    "Piece",
    "Question",
    "Reply",
    "Status",
    "Stop",
    "decode_question",
    "decode_reply",
    "encode_line",
]

# A question holds a prompt, a reply a result or a plan.
MAX_QUESTION_BYTES = 4 << 20
MAX_REPLY_BYTES = 32 << 20

T = TypeVar("T")


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Write one text; the fields are those of `Cluster.generate`.

    `wait_s` is how long to wait while too few agents are here.
    """

    prompt: str | None = None
    prompt_ids: list[int] | None = None
    max_tokens: int = 256
    options: SamplingOptions = SamplingOptions()
    stop: list[str] = []
    wait_s: float = 60.0


class GetStatus(msgspec.Struct, frozen=True, tag="get-status"):
    """Who is here, what they hold, how it goes; answered by `Status`."""


class GetPlan(msgspec.Struct, frozen=True, tag="get-plan"):
    """The plan in force; answered by `LivePlan`."""


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Free an agent of its work, or (`on` False) use it again; answered by `Done`."""

    name: AgentName
    on: bool = True


class Cordon(msgspec.Struct, frozen=True, tag="cordon"):
    """Leave an agent what it has and give it nothing new; answered by `Done`."""

    name: AgentName


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End the coordinator; answered by `Done`, and closed when it has ended."""


class Notice(msgspec.Struct, frozen=True, tag="notice"):
    """Why nothing comes yet, for people; an empty one only says that the coordinator lives."""

    text: str


class Began(msgspec.Struct, frozen=True, tag="began"):
    """The text is being written under this number; `placement` is the plan as a table."""

    request: int
    has_text: bool
    placement: str


class Piece(msgspec.Struct, frozen=True, tag="token"):
    """One token, as `results.Token`."""

    id: int | None
    text: str


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The text is complete."""

    request: int
    result: Result
    plan: Plan


class LivePlan(msgspec.Struct, frozen=True, tag="plan"):
    """The plan in force, and as a table for people."""

    epoch: int
    plan: Plan
    text: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """What was asked for is done."""

    text: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """What was asked for cannot be done, in words for the user."""

    reason: str


Question = Generate | GetStatus | GetPlan | Drain | Cordon | Stop
Reply = Notice | Began | Piece | Finished | Status | LivePlan | Done | Failed

_encoder = msgspec.json.Encoder()
_question_decoder = msgspec.json.Decoder(Question)
_reply_decoder = msgspec.json.Decoder(Reply)


def encode_line(message: Question | Reply) -> bytes:
    """Return a message as one line."""
    return _encoder.encode(message) + b"\n"


def decode_question(line: bytes) -> Question:
    """Parse what a client asks.

    Raises:
        WireError: too long, no JSON, unknown type or a field of the wrong type.
        PromptError: a sampling option out of its range.
    """
    question: Question = _decode(_question_decoder, line, MAX_QUESTION_BYTES)
    return question


def decode_reply(line: bytes) -> Reply:
    """Parse what the coordinator answers.

    Raises:
        WireError: too long, no JSON, unknown type or a field of the wrong type.
    """
    reply: Reply = _decode(_reply_decoder, line, MAX_REPLY_BYTES)
    return reply


def _decode(decoder: msgspec.json.Decoder[T], line: bytes, max_bytes: int) -> T:
    if len(line) > max_bytes:
        raise WireError(f"admin message of {len(line)} bytes; at most {max_bytes} are read")
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise WireError(f"admin message of {len(line)} bytes cannot be read: {e}") from e
