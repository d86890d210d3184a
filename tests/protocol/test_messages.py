import contextlib

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import messages
from agent.messages import (
    MAX_CONTROL_BYTES,
    BulkReply,
    BulkRequest,
    Hello,
    Versions,
    Welcome,
    decode_agent_message,
    decode_bulk_message,
    decode_coordinator_message,
    encode,
)
from agent.share import Assignment, AtomRange, LayerShare
from kernels.errors import WireError

TEXT = st.text(max_size=20)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
SIZE = st.integers(0, 2**50)
VERSIONS = st.builds(Versions, TEXT, U32, U32, U32)
RANGES = st.lists(st.builds(AtomRange, U32, U32), max_size=3).map(tuple)
SHARES = st.lists(st.builds(LayerShare, U32, RANGES, RANGES), max_size=3).map(tuple)
FORMATS = st.sampled_from(["f32", "f16"])

AGENT = st.one_of(
    st.builds(
        Hello, TEXT, TEXT, VERSIONS, U32, U32, SIZE, st.floats(0, 1e12), TEXT
    ),
    st.builds(messages.Heartbeat, U64, SIZE, SIZE, U32, U32),
    st.builds(messages.Loading, U32, SIZE, SIZE),
    st.builds(messages.Ready, U32, SIZE, SIZE, SIZE, st.floats(0, 1e6)),
    st.builds(messages.Failed, U32, TEXT),
    st.builds(messages.Bye, TEXT),
)  # fmt: skip
COORDINATOR = st.one_of(
    st.builds(Welcome, U64, U32, U32, st.floats(0, 100), VERSIONS),
    st.builds(messages.Refused, TEXT, st.booleans()),
    st.builds(messages.Release, U32),
    st.builds(messages.Shutdown, TEXT, st.booleans()),
    st.builds(
        Assignment, U64, U32, U32, TEXT, SIZE, SHARES, RANGES, FORMATS, FORMATS, U32, U32, U32, U32
    ),
)
BULK = st.one_of(
    st.builds(BulkRequest, U64, TEXT, SIZE, SIZE),
    st.builds(BulkReply, TEXT, SIZE, SIZE, U32, st.sampled_from(["", "bad range"])),
)
DECODERS = [decode_agent_message, decode_coordinator_message, decode_bulk_message]


@given(AGENT)
def test_agent_messages_round_trip(message):
    assert decode_agent_message(encode(message)) == message


@given(COORDINATOR)
def test_coordinator_messages_round_trip(message):
    assert decode_coordinator_message(encode(message)) == message


@given(BULK)
def test_bulk_messages_round_trip(message):
    assert decode_bulk_message(encode(message)) == message


def normal(value):
    """Return a value with every tuple as a list."""
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    return [normal(item) for item in value] if isinstance(value, (list, tuple)) else value


@given(st.one_of(AGENT, COORDINATOR, BULK))
def test_another_messagepack_library_reads_the_same(message):
    builtins = msgspec.to_builtins(message, builtin_types=(bytes,))
    assert normal(msgpack.unpackb(encode(message))) == normal(builtins)


@given(st.one_of(AGENT, COORDINATOR, BULK), st.data())
def test_hostile_bytes_raise_nothing_but_wire_errors(message, data):
    wire = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    for decode in DECODERS:
        for hostile in (bytes(wire), bytes(wire[: len(wire) // 2]), data.draw(st.binary())):
            with contextlib.suppress(WireError):
                decode(hostile)


@pytest.mark.parametrize("decode", DECODERS)
def test_long_and_deep_messages_are_refused(decode):
    with pytest.raises(WireError, match="longer than"):
        decode(b"\x00" * (MAX_CONTROL_BYTES + 1))
    with pytest.raises(WireError):
        decode(b"\x91" * 100_000)


def test_fields_of_a_newer_release_are_passed_over():
    newer = msgpack.packb({"type": "bye", "reason": "x", "mood": "sad"})
    assert decode_agent_message(newer) == messages.Bye("x")


def test_a_message_of_the_other_side_is_refused():
    with pytest.raises(WireError, match="Invalid value 'welcome'"):
        decode_agent_message(encode(Welcome(1, 2, 3, 1.0, Versions("0", 1, 1, 1))))
