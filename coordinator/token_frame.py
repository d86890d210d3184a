"""The request for a text's next token, where one member takes it all the way: packed once a text.

The tokens of a text that is written alone differ in number, position and residual. After a token's
weights have gone through the caches each line of Python takes microseconds, so nothing else is
written again.
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.frames import (
    POSITION_BYTE,
    SEQ_BYTE,
    Flag,
    Header,
    Wire,
    pack_header,
    payload_offset,
    write_rows,
)
from agent.ids import KvId, Seq
from agent.vocab_payload import SamplerRow, pack_sampler_rows
from coordinator.schedule import Dispatch
from kernels.exchange import encode_flat

__all__ = ["TokenFrame"]

F32 = npt.NDArray[np.float32]

_U32 = struct.Struct("<I")


class TokenFrame:
    """The frame of a STEP of one row whose logits are wanted.

    Args:
        header: any of the plan's STEPs.
        dispatch: the plan's only one.
    """

    def __init__(self, header: Header, dispatch: Dispatch) -> None:
        self._header = header._replace(
            layer=dispatch.layer, phase=dispatch.phase, flags=Flag.VOCAB_AFTER, n_rows=1,
            n_vocab_rows=1,
        )  # fmt: skip
        self._asked: tuple[Any, ...] = ()
        self._frame = bytearray()
        self._payload: npt.NDArray[Any] = np.empty(0, np.float32)

    def packed(
        self, seq: Seq, wire: Wire, kv_id: KvId, position: int, sampler: SamplerRow, x: F32
    ) -> bytearray:
        """Return the frame; it is valid until the next call.

        Args:
            seq: its number.
            wire: type of the residual in it.
            kv_id: the text's context.
            position: the row's place in it.
            sampler: what the vocabulary's holder needs.
            x: (D,) float32, read-only, the residual.
        """
        asked = (wire, kv_id, sampler.temperature, sampler.penalty, sampler.full_logits)
        if asked != self._asked or len(sampler.penalised_ids):
            self._pack(wire, kv_id, sampler, x.size)
            self._asked = () if len(sampler.penalised_ids) else asked
        _U32.pack_into(self._frame, SEQ_BYTE, seq)
        _U32.pack_into(self._frame, POSITION_BYTE, position)
        if wire is Wire.F16:
            encode_flat(x, self._payload)
        else:
            self._payload[:] = x
        return self._frame

    def _pack(self, wire: Wire, kv_id: KvId, sampler: SamplerRow, hidden_size: int) -> None:
        """Write what is the same for every token, and nothing where the others are."""
        dtype = np.uint16 if wire is Wire.F16 else np.float32
        x, block = np.zeros(hidden_size, dtype), pack_sampler_rows([sampler])
        header = self._header._replace(wire=wire, payload_bytes=x.nbytes + len(block))
        frame = bytearray(payload_offset(1) + header.payload_bytes)
        pack_header(frame, header)
        write_rows(frame, [kv_id], [0])
        frame[payload_offset(1) + x.nbytes :] = block
        self._frame = frame
        self._payload = np.frombuffer(frame, dtype, hidden_size, payload_offset(1))
