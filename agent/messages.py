"""Messages of the control and bulk channels: MessagePack maps, typed and checked by msgspec.

The tag field `type` names the message. New fields take defaults, so that either side may be
newer within one protocol version. Those of a migration, which travel on the same channels, are in
`migration_messages`. Does not know sockets.
"""

from typing import Annotated, Literal, TypeVar

import msgspec

from agent.ids import AgentName, Epoch, InstanceId, RunId
from agent.migration_messages import MoveBulkMessage, MoveOrder, MoveReport
from agent.share import Assignment
from kernels.errors import WireError

__all__ = [
    "MAX_CONTROL_BYTES",
    "PROBE_OBJECT",
    "AgentMessage",
    "Assignment",
    "BulkError",
    "BulkMessage",
    "BulkReply",
    "BulkRequest",
    "Bye",
    "CoordinatorMessage",
    "Failed",
    "Heartbeat",
    "Hello",
    "Loading",
    "ProbeLink",
    "Ready",
    "Refused",
    "Release",
    "Shutdown",
    "Versions",
    "Welcome",
    "decode_agent_message",
    "decode_bulk_message",
    "decode_coordinator_message",
    "encode",
]

MAX_CONTROL_BYTES = 1 << 20
MAX_ROUTE_BYTES = 255  # of a ZeroMQ routing id

BulkError = Literal["", "unknown object", "bad range", "wrong run", "no grant"]

# Bytes of no meaning that a receiver pulls to measure its link; no hash, so no object.
PROBE_OBJECT = "probe"
MAX_PROBE_BYTES = 64 << 20

T = TypeVar("T")

# Bounds of what is measured: whoever reads it need not look for NaN or nonsense.
# Bounds of what agents say of themselves: no board comes near, and sums over all of them fit int64.
MOST_COUNT = 1 << 50
LEAST_RATE, MOST_RATE = 1.0, 1e15
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_COUNT)]
Rate = Annotated[float, msgspec.Meta(ge=LEAST_RATE, le=MOST_RATE)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=3600.0)]
Celsius = Annotated[float, msgspec.Meta(ge=-100.0, le=300.0)]


class Versions(msgspec.Struct, frozen=True):
    """What must agree between two processes that share a plan."""

    software: str
    protocol: int
    layout: int
    numerics: int


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Agent -> coordinator, first message of a link.

    `memory_bytes` is the agent's budget: min(available, cgroup limit, --memory) less its reserve.
    `bytes_per_s` is how fast its kernels read weights, measured at start; 0 = not measured.
    """

    name: AgentName
    instance_id: InstanceId
    versions: Versions
    n_cores: int
    n_threads: int
    memory_bytes: int
    bytes_per_s: float
    machine: str = ""


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """Agent -> coordinator, as often as WELCOME says; `progress` counts finished steps.

    `round_trip_s` is that of the last probe, else the least of this link of late, both as the
    kernel measures them; None = not known, as everywhere here. `resident_bytes` are those of
    atoms, `kv_bytes` those of KV pages in use.

    Of real tokens since the last heartbeat: `bytes_per_s` is how fast the kernels read, `call_s`
    the fixed cost of each call, if they could be told apart, else what `bytes_per_s` supposes is
    `read_rate.ASSUMED_CALL_S`. `major_faults` are pages that had to come from a disk since then.
    `goodput_bytes_per_s` is what the bulk link carries, by the last of `n_goodput` measurements.

    `budget_bytes` is what weights and KV may take altogether, as HELLO's `memory_bytes` was at the
    start but by what is free now; `reserve_bytes` is what stays free besides. `unmapped_bytes` are
    those of KV pools, of all plans that are here, and of weights that are no mapped file.
    """

    progress: int
    memory_available_bytes: int
    resident_bytes: int
    kv_free_pages: int = 0
    epoch: Epoch = Epoch(0)
    round_trip_s: Seconds | None = None
    kv_bytes: Count = 0
    major_faults: Count = 0
    bytes_per_s: Rate | None = None
    call_s: Seconds | None = None
    goodput_bytes_per_s: Rate | None = None
    n_goodput: Count = 0
    temperature_c: Celsius | None = None
    throttled: bool | None = None
    budget_bytes: Count | None = None
    reserve_bytes: Count = 0
    unmapped_bytes: Count = 0


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Agent -> coordinator: how far the atoms of an assignment are on the board."""

    epoch: Epoch
    done_bytes: int
    total_bytes: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Agent -> coordinator: kernels compiled, weights touched, KV pool reserved."""

    epoch: Epoch
    weights_bytes: int
    kv_pool_bytes: int
    pulled_bytes: int
    seconds: float


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Agent -> coordinator: an assignment that cannot be carried out, and why."""

    epoch: Epoch
    reason: str


class Bye(msgspec.Struct, frozen=True, tag="bye"):
    """Agent -> coordinator: this agent leaves."""

    reason: str = ""


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """Coordinator -> agent: the run's number and the ports of the other two channels.

    `hot_route` is this link's routing id on the hot channel, which nobody else is told.
    `bulk_token` names this link in bulk requests: whoever grants, grants to a token.
    """

    run_id: RunId
    hot_port: int
    bulk_port: int
    heartbeat_s: float
    versions: Versions
    bulk_token: bytes = b""
    hot_route: Annotated[bytes, msgspec.Meta(max_length=MAX_ROUTE_BYTES)] = b""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Coordinator -> agent: this agent cannot join; `retry` says whether to try again."""

    reason: str
    retry: bool = False


class Release(msgspec.Struct, frozen=True, tag="release"):
    """Coordinator -> agent: free what epoch `epoch` holds (KV, maps); keep the cache."""

    epoch: Epoch


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Coordinator -> agent: the run is over; `leave` tells a --local agent to exit."""

    reason: str
    leave: bool = False


class ProbeLink(msgspec.Struct, frozen=True, tag="probe"):
    """Coordinator -> agent: nobody is being served; pull so much of PROBE_OBJECT to measure."""

    n_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_PROBE_BYTES)]


class BulkRequest(msgspec.Struct, frozen=True, tag="pull"):
    """Receiver -> holder: send `length` bytes of an object from `offset`.

    An object is the model's manifest or one atom, named by its blake2b hash (32 hex digits).
    `token` is the one that WELCOME gave to this link; the object must be granted to it.
    """

    run_id: RunId
    object_id: str
    offset: int
    length: int
    token: bytes = b""


class BulkReply(msgspec.Struct, frozen=True, tag="chunk"):
    """Holder -> receiver, followed by a frame with the bytes; `error` instead of bytes.

    `window_bytes` asks the receiver to keep no more than that open, because a request runs on
    the same links; 0 leaves the window to the receiver.
    """

    object_id: str
    offset: int
    length: int
    crc32: int
    error: BulkError = ""
    window_bytes: int = 0


AgentMessage = Hello | Heartbeat | Loading | Ready | Failed | Bye | MoveReport
CoordinatorMessage = Welcome | Refused | Assignment | Release | Shutdown | ProbeLink | MoveOrder
BulkMessage = BulkRequest | BulkReply | MoveBulkMessage

_encoder = msgspec.msgpack.Encoder()
_agent_decoder = msgspec.msgpack.Decoder(AgentMessage)
_coordinator_decoder = msgspec.msgpack.Decoder(CoordinatorMessage)
_bulk_decoder = msgspec.msgpack.Decoder(BulkMessage)


def encode(message: AgentMessage | CoordinatorMessage | BulkMessage) -> bytes:
    """Return a message as MessagePack bytes."""
    return _encoder.encode(message)


def decode_agent_message(data: bytes) -> AgentMessage:
    """Parse a control message that an agent sent.

    Raises:
        WireError: too long, not MessagePack, unknown type or a field of the wrong type.
    """
    message: AgentMessage = _decode(_agent_decoder, data)
    return message


def decode_coordinator_message(data: bytes) -> CoordinatorMessage:
    """Parse a control message that the coordinator sent.

    Raises:
        WireError: too long, not MessagePack, unknown type or a field of the wrong type.
    """
    message: CoordinatorMessage = _decode(_coordinator_decoder, data)
    return message


def decode_bulk_message(data: bytes) -> BulkMessage:
    """Parse a message of the bulk channel.

    Raises:
        WireError: too long, not MessagePack, unknown type or a field of the wrong type.
    """
    message: BulkMessage = _decode(_bulk_decoder, data)
    return message


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    if len(data) > MAX_CONTROL_BYTES:
        raise WireError(f"message of {len(data)} bytes is longer than {MAX_CONTROL_BYTES}")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise WireError(f"message of {len(data)} bytes cannot be read: {e}") from e
