"""Messages of a migration: what moves, how far a text has come, and rows of its keys and values.

A migration is named by the epoch that it leads to. Messages on the control channel name states
("have rows up to 812 of version 2"), not steps: sent twice, late or again after a lost link they
do no harm. On the bulk channel the target asks and the source answers, both through the
coordinator's relay. `messages` encodes and parses them. Does not know sockets.
"""

from typing import Annotated, Literal

import msgspec

__all__ = [
    "FIRST_BYTES", "MAX_REASON", "MAX_ROWS_BYTES", "NO_FLOOR", "Arrive", "Begun", "Depart",
    "Group", "Have",
    "KvAsk", "KvError", "KvOffer", "KvRows", "MoveBulkMessage", "MoveEnd", "MoveEnded",
    "MoveFailed", "MoveOrder", "MoveReport", "Share", "Want",
]  # fmt: skip

MAX_ROWS_BYTES = 256 << 10
MAX_SHARES = 1024
MAX_GROUPS = 1 << 15
MAX_REASON = 1024
NO_FLOOR = 2**32 - 1
# What a target asks for before anybody has told it whether a text is being written.
FIRST_BYTES = 64 << 10

U16 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
U64 = Annotated[int, msgspec.Meta(ge=0)]  # MessagePack has none above 64 bits
Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON)]
Token = Annotated[bytes, msgspec.Meta(max_length=64)]
Name = Annotated[str, msgspec.Meta(max_length=255)]

KvError = Literal["", "wrong run", "no grant", "not here", "busy", "bad range"]


class Group(msgspec.Struct, frozen=True, array_like=True):
    """One head group of the model."""

    layer: U16
    group: U16


class Share(msgspec.Struct, frozen=True):
    """Head groups that go from one agent to another; `number` names it within the migration.

    A share whose source is its target is copied between the agent's own two pools. `of_epoch` is
    the epoch whose pool has the rows, 0 = the one that the migration leads from: what a lost agent
    had is read from its mirror.
    """

    number: U16
    source: Name
    target: Name
    groups: Annotated[tuple[Group, ...], msgspec.Meta(min_length=1, max_length=MAX_GROUPS)]
    of_epoch: U32 = 0

    @property
    def local(self) -> bool:
        """Whether nothing travels."""
        return self.source == self.target


Shares = Annotated[tuple[Share, ...], msgspec.Meta(max_length=MAX_SHARES)]


# Coordinator -> agent.


class Arrive(msgspec.Struct, frozen=True, tag="arrive"):
    """Be a target: `shares` come into the pool of `epoch`. Sent once the agent is ready for it.

    `window_bytes` is what may be on its way until the first answer says more; 0 = all credit.

    With `mirror` there is no such epoch yet: the agent reserves a pool for the groups of its
    shares, without weights and kernels, of the same sizes otherwise as that of `from_epoch`.
    """

    run_id: U64
    epoch: U32
    from_epoch: U32
    shares: Shares
    window_bytes: U32 = FIRST_BYTES
    mirror: bool = False


class Depart(msgspec.Struct, frozen=True, tag="depart"):
    """Be a source: rows of `shares` may be read out of the pool of `from_epoch`.

    Sent at once, so that the source's link is up before a target asks.

    With `mirror` that goes on as long as there are texts, and nobody waits for it.
    """

    run_id: U64
    epoch: U32
    from_epoch: U32
    shares: Shares
    mirror: bool = False


class Want(msgspec.Struct, frozen=True, tag="want"):
    """What a target is to have of one text.

    Attributes:
        version: counts what made rows void; of two messages the one with the higher version holds.
        floor: rows from here on are void in every version before this one.
        n_tokens: rows to have; they are written on every source.
        reserve_tokens: tokens for which pages are reserved before the first row is copied.
        urgent: the text waits for it.
        gone: the text was released; free it. Final.
        fork_of, fork_version, fork_tokens: so many rows are those that another text had in that
            version; 0 tokens = of none.
    """

    run_id: U64
    epoch: U32
    kv_id: U32
    version: U32
    n_tokens: U32
    floor: U32 = NO_FLOOR
    reserve_tokens: U32 = 0
    urgent: bool = False
    gone: bool = False
    fork_of: U32 = 0
    fork_version: U32 = 0
    fork_tokens: U32 = 0


class MoveEnd(msgspec.Struct, frozen=True, tag="move_end"):
    """The migration is over, this way or that: free what `frees` names, the epoch that lost."""

    run_id: U64
    epoch: U32
    frees: U32


# Agent -> coordinator.


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """The agent knows its part: `arrives` as a target, else as a source."""

    run_id: U64
    epoch: U32
    arrives: bool


class Have(msgspec.Struct, frozen=True, tag="have"):
    """Rows below n_tokens of one text are in the pool, checked; of a text that is gone, none."""

    run_id: U64
    epoch: U32
    kv_id: U32
    version: U32
    n_tokens: U32
    gone: bool = False


class MoveFailed(msgspec.Struct, frozen=True, tag="move_failed"):
    """The target cannot go on, and why."""

    run_id: U64
    epoch: U32
    reason: Reason


class MoveEnded(msgspec.Struct, frozen=True, tag="move_ended"):
    """The agent has forgotten the migration and let go of the epoch that lost."""

    run_id: U64
    epoch: U32


# Bulk.


class KvOffer(msgspec.Struct, frozen=True, tag="kv_offer"):
    """Source -> relay, every second: this link answers for the agent of this token."""

    run_id: U64
    epoch: U32
    token: Token = b""


class KvAsk(msgspec.Struct, frozen=True, tag="kv_ask"):
    """Target -> relay -> source: send a rectangle of rows.

    Groups first_group .. first_group + n_groups - 1 of the share's list, positions first ..
    first + n_tokens - 1. `number` is the asker's own and echoed; the relay asks with its own.
    """

    run_id: U64
    epoch: U32
    number: U64
    share: U16
    kv_id: U32
    first_group: U32
    n_groups: U32
    first: U32
    n_tokens: U32
    urgent: bool = False
    token: Token = b""


class KvRows(msgspec.Struct, frozen=True, tag="kv_rows"):
    """Source -> relay -> target, followed by a frame with the bytes; `error` instead of bytes.

    `window_bytes` as in `messages.BulkReply`, set by the relay.
    """

    run_id: U64
    epoch: U32
    number: U64
    crc32: U32 = 0
    error: KvError = ""
    window_bytes: U32 = 0


MoveOrder = Arrive | Depart | Want | MoveEnd
MoveReport = Begun | Have | MoveFailed | MoveEnded
MoveBulkMessage = KvOffer | KvAsk | KvRows
