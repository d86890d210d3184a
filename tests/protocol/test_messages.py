import contextlib

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import messages
from agent import migration_messages as move
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
U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
SIZE = st.integers(0, 2**50)
VERSIONS = st.builds(Versions, TEXT, U32, U32, U32)
RANGES = st.lists(st.builds(AtomRange, U32, U32), max_size=3).map(tuple)
SHARES = st.lists(st.builds(LayerShare, U32, RANGES, RANGES), max_size=3).map(tuple)
WIRE, KV = st.sampled_from(["f32", "f16"]), st.sampled_from(["f32", "f16", "int8"])
GROUPS = st.lists(st.builds(move.Group, U16, U16), min_size=1, max_size=3).map(tuple)
PARTS = st.lists(st.builds(move.Share, U16, TEXT, TEXT, GROUPS), max_size=3).map(tuple)
TOKEN = st.binary(max_size=16)

AGENT = st.one_of(
    st.builds(
        Hello, TEXT, TEXT, VERSIONS, U32, U32, SIZE, st.floats(0, 1e12), TEXT
    ),
    st.builds(messages.Heartbeat, U64, SIZE, SIZE, U32, U32),
    st.builds(
        messages.Heartbeat, U64, SIZE, SIZE, U32, U32, st.none() | st.floats(0, 3600), SIZE, U32,
        st.none() | st.floats(1.0, 1e15), st.none() | st.floats(0, 3600),
        st.none() | st.floats(1.0, 1e15), U32, st.none() | st.floats(-100, 300),
        st.none() | st.booleans(),
    ),
    st.builds(messages.Loading, U32, SIZE, SIZE),
    st.builds(messages.Ready, U32, SIZE, SIZE, SIZE, st.floats(0, 1e6)),
    st.builds(messages.Failed, U32, TEXT),
    st.builds(messages.Bye, TEXT),
    st.builds(move.Begun, U64, U32, st.booleans()),
    st.builds(move.Have, U64, U32, U32, U32, U32, st.booleans()),
    st.builds(move.MoveFailed, U64, U32, TEXT),
    st.builds(move.MoveEnded, U64, U32),
)  # fmt: skip
COORDINATOR = st.one_of(
    st.builds(Welcome, U64, U32, U32, st.floats(0, 100), VERSIONS),
    st.builds(messages.Refused, TEXT, st.booleans()),
    st.builds(messages.Release, U32),
    st.builds(messages.Shutdown, TEXT, st.booleans()),
    st.builds(messages.ProbeLink, st.integers(1, messages.MAX_PROBE_BYTES)),
    st.builds(
        Assignment, U64, U32, U32, TEXT, SIZE, SHARES, RANGES, WIRE, KV, U32, U32, U32, U32, U32
    ),
    st.builds(move.Arrive, U64, U32, U32, PARTS),
    st.builds(move.Depart, U64, U32, U32, PARTS),
    st.builds(
        move.Want, U64, U32, U32, U32, U32, U32, U32, st.booleans(), st.booleans(), U32, U32, U32
    ),
    st.builds(move.MoveEnd, U64, U32, U32),
)
BULK = st.one_of(
    st.builds(BulkRequest, U64, TEXT, SIZE, SIZE),
    st.builds(BulkReply, TEXT, SIZE, SIZE, U32, st.sampled_from(["", "bad range"])),
    st.builds(move.KvOffer, U64, U32, TOKEN),
    st.builds(
        move.KvAsk, U64, U32, U64, U16, U32, U32, U32, U32, U32, st.booleans(), TOKEN
    ),
    st.builds(move.KvRows, U64, U32, U64, U32, st.sampled_from(["", "busy"]), U32),
)  # fmt: skip
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


NOT_MEASURED = ("round_trip_s", "bytes_per_s", "call_s", "goodput_bytes_per_s", "temperature_c")


@pytest.mark.parametrize("name", NOT_MEASURED)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e9, 1e300, "fast", True])
def test_a_heartbeat_with_a_measurement_that_cannot_be_is_not_read(name, value):
    beat = {"type": "heartbeat", "progress": 1, "memory_available_bytes": 2, "resident_bytes": 3}
    assert decode_agent_message(msgpack.packb(beat)) == messages.Heartbeat(1, 2, 3)
    assert getattr(decode_agent_message(msgpack.packb({**beat, name: 1.5})), name) == 1.5
    with pytest.raises(WireError):
        decode_agent_message(msgpack.packb({**beat, name: value}))


@pytest.mark.parametrize("field", ["kv_bytes", "major_faults", "n_goodput"])
def test_a_heartbeat_counts_nothing_below_zero(field):
    beat = {"type": "heartbeat", "progress": 1, "memory_available_bytes": 2, "resident_bytes": 3}
    with pytest.raises(WireError):
        decode_agent_message(msgpack.packb({**beat, field: -1}))


def test_an_agent_is_not_told_to_pull_without_end():
    for n_bytes in (0, -1, messages.MAX_PROBE_BYTES + 1):
        with pytest.raises(WireError):
            decode_coordinator_message(msgpack.packb({"type": "probe", "n_bytes": n_bytes}))
