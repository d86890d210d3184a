"""Payloads of the vocabulary phase: what the sampler needs, and what the holders answer.

Sampler block, after the rows of x in a STEP whose rows go on to the vocabulary; one record a
vocab row: f32 temperature, f32 penalty, u32 flags (1 = full logits), u32 n, then n u32 token ids
whose logits the repeat penalty lowers. Distinct ids, at most MAX_PENALISED.

TOP payload, one record a vocab row: f64 log-sum-exp of the member's penalised logits divided by
the temperature (by 1 for greedy), u32 n, u32 0, then n u32 ids and n f32 penalised logits, sorted
by falling logit, then rising id. Every record is a multiple of 8 bytes.

LOGITS payload: f32 (n_vocab_rows, n_local_rows), penalised, in the order of the member's ranges.
"""

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.errors import WireError

__all__ = [
    "MAX_PENALISED",
    "TOP_CANDIDATES",
    "TOP_ENTRY_BYTES",
    "TOP_HEAD_BYTES",
    "SamplerRow",
    "TopRow",
    "pack_sampler_rows",
    "pack_top_rows",
    "read_sampler_rows",
    "read_top_rows",
]

TOP_CANDIDATES = 256
MAX_PENALISED = 4096

_SAMPLER = struct.Struct("<ffII")
_TOP = struct.Struct("<dII")
# Before the candidates of the first row, and each of these.
TOP_HEAD_BYTES, TOP_ENTRY_BYTES = _TOP.size, 8
_FULL_LOGITS = 1

Ids = npt.NDArray[np.uint32]
Logits = npt.NDArray[np.float32]


class SamplerRow(NamedTuple):
    """What one vocab row's sampler needs from the holders; temperature 0 means greedy."""

    temperature: float = 0.0
    penalty: float = 1.0
    full_logits: bool = False
    penalised_ids: Ids = np.empty(0, np.uint32)


class TopRow(NamedTuple):
    """One member's best candidates of one row, and the log-sum-exp of all it holds.

    Of a greedy row the best one, else TOP_CANDIDATES, or all that it holds.
    """

    log_sum_exp: float
    ids: Ids
    logits: Logits


def pack_sampler_rows(rows: list[SamplerRow]) -> bytes:
    """Return the sampler block for the rows in order."""
    parts = []
    for row in rows:
        flags = _FULL_LOGITS if row.full_logits else 0
        parts.append(_SAMPLER.pack(row.temperature, row.penalty, flags, len(row.penalised_ids)))
        if len(row.penalised_ids):
            parts.append(row.penalised_ids.astype("<u4").tobytes())
    return b"".join(parts)


def read_sampler_rows(block: bytes | memoryview, n_rows: int) -> list[SamplerRow]:
    """Parse the sampler block of n_rows vocab rows.

    Raises:
        WireError: a length that does not fit, too many ids, options out of range.
    """
    rows: list[SamplerRow] = []
    at = 0
    for _ in range(n_rows):
        if at + _SAMPLER.size > len(block):
            raise WireError(f"sampler block of {len(block)} bytes ends before row {len(rows)}")
        temperature, penalty, flags, n_ids = _SAMPLER.unpack_from(block, at)
        at += _SAMPLER.size
        if n_ids > MAX_PENALISED or at + 4 * n_ids > len(block):
            raise WireError(f"sampler block names {n_ids} ids in {len(block) - at} bytes")
        if not (0.0 <= temperature < 1e6 and 0.0 < penalty < 1e6) or flags > _FULL_LOGITS:
            raise WireError(f"sampler block has temperature {temperature}, penalty {penalty}")
        ids = np.frombuffer(block, np.uint32, n_ids, at)
        rows.append(SamplerRow(temperature, penalty, bool(flags), ids))
        at += 4 * n_ids
    if at != len(block):
        raise WireError(f"sampler block has {len(block) - at} bytes after its {n_rows} rows")
    return rows


def pack_top_rows(rows: list[TopRow]) -> bytes:
    """Return the TOP payload for the rows in order."""
    parts = []
    for row in rows:
        n_ids = len(row.ids)
        parts.append(_TOP.pack(row.log_sum_exp, n_ids, 0))
        parts.append(row.ids.astype("<u4").tobytes() + row.logits.astype("<f4").tobytes())
    return b"".join(parts)


def read_top_rows(payload: bytes | memoryview, n_rows: int) -> list[TopRow]:
    """Parse a TOP payload of n_rows rows.

    Raises:
        WireError: a length that does not fit or more candidates than TOP_CANDIDATES.
    """
    rows: list[TopRow] = []
    at = 0
    for _ in range(n_rows):
        if at + _TOP.size > len(payload):
            raise WireError(f"TOP payload of {len(payload)} bytes ends before row {len(rows)}")
        log_sum_exp, n_ids, _ = _TOP.unpack_from(payload, at)
        at += _TOP.size
        if n_ids > TOP_CANDIDATES or at + 8 * n_ids > len(payload):
            raise WireError(f"TOP payload names {n_ids} candidates in {len(payload) - at} bytes")
        ids = np.frombuffer(payload, np.uint32, n_ids, at)
        logits = np.frombuffer(payload, np.float32, n_ids, at + 4 * n_ids)
        rows.append(TopRow(log_sum_exp, ids, logits))
        at += 8 * n_ids
    if at != len(payload):
        raise WireError(f"TOP payload has {len(payload) - at} bytes after its {n_rows} rows")
    return rows
