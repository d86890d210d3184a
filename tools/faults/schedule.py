"""Which fault strikes when: a list made from a seed. Pure.

Kinds and aims are dealt out in fixed numbers and shuffled, so that every seed has enough of each.
"""

import math
import random
from enum import StrEnum
from typing import NamedTuple

__all__ = ["Aim", "Fault", "Kind", "make_schedule"]

# Of all faults: how many are aimed at a prompt being read, and at a move in flight.
PREFILL_SHARE = 0.25
MOVE_SHARE = 0.2
MAX_AFTER_TOKENS = 40


class Kind(StrEnum):
    """What happens to a board."""

    KILL = "kill"
    FREEZE = "freeze"
    CUT = "cut"
    SLOW = "slow"
    DRAIN = "drain"
    JOIN = "join"


class Aim(StrEnum):
    """What a stream shall be doing when the fault strikes."""

    DECODE = "decode"
    PREFILL = "prefill"
    MOVE = "move"


# Seconds until the fault is over: the board is started again, thawed, plugged in, as fast as
# before, undrained; a guest leaves. Half of the freezes and cuts are too short to be a loss.
SHORT_S = (0.2, 1.0)
HOLD_S = {
    Kind.KILL: (0.5, 4.0),
    Kind.FREEZE: (3.0, 8.0),
    Kind.CUT: (3.0, 8.0),
    Kind.SLOW: (3.0, 10.0),
    Kind.DRAIN: (1.0, 5.0),
    Kind.JOIN: (5.0, 15.0),
}


class Fault(NamedTuple):
    """One fault.

    Attributes:
        number: from 1.
        after_tokens: of a stream, when `aim` is decode.
        pick: which of the boards that may be struck, 0 to 1.
        hold_s: how long it lasts.
        pause_s: from the fault before it, at least.
    """

    number: int
    kind: Kind
    aim: Aim
    after_tokens: int
    pick: float
    hold_s: float
    pause_s: float


def make_schedule(n_faults: int, seed: int) -> list[Fault]:
    """Return n_faults faults: of each kind a sixth or one more, in an order that the seed gives."""
    rng = random.Random(seed)
    kinds = list(Kind) * (n_faults // len(Kind))
    kinds += rng.sample(list(Kind), n_faults - len(kinds))
    n_prefill, n_move = math.ceil(PREFILL_SHARE * n_faults), math.ceil(MOVE_SHARE * n_faults)
    aims = ([Aim.PREFILL] * n_prefill + [Aim.MOVE] * n_move)[:n_faults]
    aims += [Aim.DECODE] * (n_faults - len(aims))
    rng.shuffle(kinds)
    rng.shuffle(aims)
    return [
        Fault(
            number,
            kind,
            aim,
            rng.randint(1, MAX_AFTER_TOKENS),
            rng.random(),
            _hold_s(kind, rng),
            rng.uniform(0.0, 2.0),
        )
        for number, (kind, aim) in enumerate(zip(kinds, aims, strict=True), 1)
    ]


def _hold_s(kind: Kind, rng: random.Random) -> float:
    short = kind in (Kind.FREEZE, Kind.CUT) and rng.random() < 0.5
    return rng.uniform(*(SHORT_S if short else HOLD_S[kind]))
