"""The hot frame: one ZeroMQ frame of header, row table and payload (docs/wire.md).

Little endian throughout. The header has 40 bytes and a row 8, so the payload starts at a
multiple of 8 and numpy can view it in place. Replies name what they answer by `seq` and carry no
row table (n_rows = 0). Does not know sockets or plans: it packs into and checks buffers that its
callers own.

A frame of at most 8183 bytes leaves libzmq in one write (reference/transport.md section 1).
"""

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

import numpy as np

from agent.ids import Epoch, KvId, Rank, RunId, Seq
from kernels.errors import WireError

__all__ = [
    "BUSY_BYTE",
    "HEADER_BYTES",
    "LAYER_BYTE",
    "MAX_FRAME_BYTES",
    "MAX_ROWS",
    "PHASE_BYTE",
    "POSITION_BYTE",
    "PROTOCOL_VERSION",
    "RANK_BYTE",
    "ROW_BYTES",
    "SEQ_BYTE",
    "Flag",
    "FrameType",
    "Header",
    "Phase",
    "Wire",
    "pack_header",
    "payload_offset",
    "read_header",
    "repack_request",
    "write_rows",
]

MAGIC = 0x48
PROTOCOL_VERSION = 1
MAX_ROWS = 512
MAX_FRAME_BYTES = 16 << 20
ROW_BYTES = 8

_HEADER = struct.Struct("<BBBBIQIHBBHHHHII")
HEADER_BYTES = _HEADER.size
# seq, layer, phase, flags: what differs between the phases of one step.
_REQUEST = struct.Struct("<IHBB")
# Where compiled code finds fields: the first byte of each.
SEQ_BYTE, LAYER_BYTE, PHASE_BYTE, RANK_BYTE, BUSY_BYTE = 16, 20, 22, 24, 32
POSITION_BYTE = HEADER_BYTES + 4  # of the first row


class FrameType(IntEnum):
    """What a frame asks or answers; C = coordinator (holder of the residual), A = agent."""

    STEP = 1  # C -> A: rows of the residual, run `phase` of `layer`
    PARTIAL = 2  # A -> C: this member's partial sum
    RESIDUAL = 3  # A -> C: the residual after all layers of a stage of one (or no rows: done)
    TOP = 4  # A -> C: best candidates of this member's vocab rows
    LOGITS = 5  # A -> C: all logits of this member's vocab rows
    KV = 6  # C -> A: OPEN, FORK, TRUNCATE, RELEASE of contexts
    ERROR = 7  # A -> C: text of what went wrong with step `seq`
    PING = 8  # C -> A: no answer; sending it tells whether the link still stands
    HELLO = 9  # A -> C: first frame of a hot link, so that the coordinator learns its route


class Phase(IntEnum):
    """Half a layer, the vocabulary, or a whole stage held by one member."""

    ATTENTION = 0
    MLP = 1
    VOCAB = 2
    STAGE = 3


class Wire(IntEnum):
    """Type of the payload's numbers."""

    F32 = 0
    F16 = 1


class Flag(IntFlag):
    """Header flags."""

    NONE = 0
    VOCAB_AFTER = 1  # STAGE: go on with the vocabulary for the last n_vocab_rows rows


class Header(NamedTuple):
    """The fixed fields of a frame.

    `n_vocab_rows` counts the rows, last in the table, whose logits are wanted. `busy_us` is the
    time a reply's kernels took.
    """

    type: FrameType
    wire: Wire
    epoch: Epoch
    run_id: RunId
    seq: Seq
    layer: int = 0
    phase: Phase = Phase.ATTENTION
    flags: Flag = Flag.NONE
    rank: Rank = Rank(0)
    n_rows: int = 0
    n_vocab_rows: int = 0
    busy_us: int = 0
    payload_bytes: int = 0


def payload_offset(n_rows: int) -> int:
    """Return where the payload of a frame with n_rows rows starts, in bytes."""
    return HEADER_BYTES + ROW_BYTES * n_rows


def pack_header(buffer: bytearray | memoryview, header: Header) -> None:
    """Write the header at the start of `buffer` in place."""
    h = header
    _HEADER.pack_into(
        buffer, 0, MAGIC, PROTOCOL_VERSION, h.type, h.wire, h.epoch, h.run_id, h.seq, h.layer,
        h.phase, h.flags, h.rank, h.n_rows, h.n_vocab_rows, 0, h.busy_us, h.payload_bytes,
    )  # fmt: skip


def repack_request(
    buffer: bytearray | memoryview, seq: Seq, layer: int, phase: Phase, flags: Flag
) -> None:
    """Change, in a packed header, only what differs between the phases of one step."""
    _REQUEST.pack_into(buffer, SEQ_BYTE, seq, layer, phase, flags)


def read_header(buffer: bytes | bytearray | memoryview, n_bytes: int) -> Header:
    """Parse and check the header of a received frame of n_bytes bytes.

    Raises:
        WireError: too short, wrong magic or version, unknown type, sizes that disagree.
    """
    if n_bytes < HEADER_BYTES:
        raise WireError(
            f"hot frame of {n_bytes} bytes is shorter than its {HEADER_BYTES}-byte header"
        )
    (magic, version, kind, wire, epoch, run_id, seq, layer, phase, flags, rank, n_rows,
     n_vocab_rows, _, busy_us, payload_bytes) = _HEADER.unpack_from(buffer)  # fmt: skip
    if magic != MAGIC or version != PROTOCOL_VERSION:
        raise WireError(
            f"hot frame has magic {magic:#x} version {version}, expected {MAGIC:#x} version "
            f"{PROTOCOL_VERSION}; use the same headwise release on both sides"
        )
    if n_rows > MAX_ROWS or n_vocab_rows > n_rows:
        raise WireError(
            f"hot frame names {n_rows} rows, {n_vocab_rows} for the vocabulary; at most {MAX_ROWS}"
        )
    if payload_offset(n_rows) + payload_bytes != n_bytes:
        raise WireError(
            f"hot frame has {n_bytes} bytes but its header announces {n_rows} rows and "
            f"{payload_bytes} payload bytes"
        )
    try:
        return Header(
            _TYPES[kind], _WIRES[wire], epoch, run_id, seq, layer, _PHASES[phase], _FLAGS[flags],
            rank, n_rows, n_vocab_rows, busy_us, payload_bytes,
        )  # fmt: skip
    except KeyError as e:
        raise WireError(
            f"hot frame has unknown type, wire, phase or flags: {kind}, {wire}, {phase}, {flags}"
        ) from e


# Enum calls cost a microsecond each; dictionary look-ups do not.
_TYPES = {int(t): t for t in FrameType}
_WIRES = {int(w): w for w in Wire}
_PHASES = {int(p): p for p in Phase}
_FLAGS = {0: Flag.NONE, 1: Flag.VOCAB_AFTER}


def write_rows(buffer: bytearray, kv_ids: list[KvId], positions: list[int]) -> None:
    """Write the row table, n x (kv_id, pos), after the header in place."""
    n_rows = len(kv_ids)
    table = np.frombuffer(buffer, np.uint32, 2 * n_rows, HEADER_BYTES).reshape(n_rows, 2)
    table[:, 0] = kv_ids
    table[:, 1] = positions
