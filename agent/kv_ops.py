"""The payload of a KV frame: operations on contexts, in order.

Each operation is 16 bytes: u32 op, u32 kv_id, u32 a, u32 b.

    OPEN      kv_id, a = tokens to reserve pages for
    FORK      kv_id (new), a = source kv_id, b = tokens shared
    TRUNCATE  kv_id, a = tokens kept
    RELEASE   kv_id
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from agent.ids import KvId
from kernels.errors import WireError

__all__ = ["KvOp", "KvOpCode", "pack_kv_ops", "read_kv_ops"]

_OP = struct.Struct("<IIII")


class KvOpCode(IntEnum):
    """What to do with a context."""

    OPEN = 1
    FORK = 2
    TRUNCATE = 3
    RELEASE = 4


class KvOp(NamedTuple):
    """One operation on one context."""

    code: KvOpCode
    kv_id: KvId
    a: int = 0
    b: int = 0


def pack_kv_ops(ops: Iterable[KvOp]) -> bytes:
    """Return the payload that names the operations in order."""
    return b"".join(_OP.pack(*op) for op in ops)


def read_kv_ops(payload: bytes | bytearray | memoryview) -> list[KvOp]:
    """Parse a KV payload.

    Raises:
        WireError: a length that is no multiple of 16, or an unknown operation.
    """
    if len(payload) % _OP.size:
        raise WireError(f"KV frame payload of {len(payload)} bytes is no multiple of {_OP.size}")
    try:
        return [KvOp(KvOpCode(c), KvId(k), a, b) for c, k, a, b in _OP.iter_unpack(payload)]
    except ValueError as e:
        raise WireError(f"KV frame holds an unknown operation: {e}") from e
