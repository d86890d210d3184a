"""What a generation gives: tokens as they come, and the result at the end. Plain data."""

import msgspec

__all__ = ["Result", "Timings", "Token"]


class Token(msgspec.Struct, frozen=True):
    """One generated token and the text that became certain with it (often its own, or "").

    Text waits while it may still be half a character or the start of a stop string; what waited
    when the text ended comes last, with id None.
    """

    id: int | None
    text: str


class Timings(msgspec.Struct, frozen=True):
    """Where the time of one generation went; shares are of prefill and decode together."""

    prefill_s: float
    decode_s: float
    time_to_first_token_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    kernels_share: float
    exchange_share: float
    coordinator_share: float
    n_steps: int
    n_phases: int


class Result(msgspec.Struct, frozen=True):
    """A finished text; `finish_reason` is "stop", "length" or "cancelled"."""

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str
    timings: Timings
