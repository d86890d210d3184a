import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.frames import (
    HEADER_BYTES,
    MAX_ROWS,
    PROTOCOL_VERSION,
    ROW_BYTES,
    Flag,
    FrameType,
    Header,
    Phase,
    Wire,
    pack_header,
    payload_offset,
    read_header,
    write_rows,
)
from kernels.errors import WireError

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)


@st.composite
def headers(draw):
    n_rows = draw(st.integers(0, MAX_ROWS))
    return Header(
        type=draw(st.sampled_from(FrameType)),
        wire=draw(st.sampled_from(Wire)),
        epoch=draw(U32),
        run_id=draw(st.integers(0, 2**64 - 1)),
        seq=draw(U32),
        layer=draw(U16),
        phase=draw(st.sampled_from(Phase)),
        flags=draw(st.sampled_from([Flag.NONE, Flag.VOCAB_AFTER])),
        rank=draw(U16),
        n_rows=n_rows,
        n_vocab_rows=draw(st.integers(0, n_rows)),
        busy_us=draw(U32),
        payload_bytes=draw(st.integers(0, 200)),
    )


def frame_of(header):
    frame = bytearray(payload_offset(header.n_rows) + header.payload_bytes)
    pack_header(frame, header)
    return frame


@given(headers())
def test_header_round_trip(header):
    frame = frame_of(header)
    again = read_header(frame, len(frame))
    assert again == header
    assert type(again.type) is FrameType
    assert type(again.flags) is Flag


@given(headers(), st.data())
def test_mutated_frames_raise_nothing_but_wire_errors(header, data):
    frame = frame_of(header)
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, HEADER_BYTES - 1))] = data.draw(st.integers(0, 255))
    n_bytes = data.draw(st.integers(0, len(frame)))
    for size in (n_bytes, len(frame)):
        try:
            again = read_header(frame, size)
        except WireError:
            continue
        assert payload_offset(again.n_rows) + again.payload_bytes == size


@given(st.binary(max_size=300))
def test_junk_raises_nothing_but_wire_errors(junk):
    with pytest.raises(WireError):
        read_header(junk, len(junk))


def test_header_layout_is_that_of_the_wire_document():
    header = Header(
        FrameType.STEP, Wire.F16, 0x01020304, 0x1122334455667788, 0xA1A2A3A4, 0x0506,
        Phase.VOCAB, Flag.VOCAB_AFTER, 0x0708, 2, 1, 0x0B0C0D0E, 6,
    )  # fmt: skip
    frame = frame_of(header)
    assert len(frame) == 40 + 16 + 6
    assert frame[:40].hex(" ") == (
        "48 01 01 01 04 03 02 01 88 77 66 55 44 33 22 11 a4 a3 a2 a1 06 05 02 01 08 07 "
        "02 00 01 00 00 00 0e 0d 0c 0b 06 00 00 00"
    )


def test_another_version_is_named_in_the_error():
    frame = frame_of(Header(FrameType.PING, Wire.F32, 1, 2, 3))
    frame[1] = PROTOCOL_VERSION + 1
    with pytest.raises(WireError, match="version 2, expected 0x48 version 1; use the same"):
        read_header(frame, len(frame))


@given(st.lists(st.tuples(U32, U32), min_size=1, max_size=20))
def test_row_table_round_trip(rows):
    frame = bytearray(payload_offset(len(rows)))
    write_rows(frame, [r[0] for r in rows], [r[1] for r in rows])
    table = np.frombuffer(frame, "<u4", 2 * len(rows), HEADER_BYTES)
    assert table.reshape(-1, 2).tolist() == [list(r) for r in rows]
    assert HEADER_BYTES % 8 == 0
    assert ROW_BYTES == 8
