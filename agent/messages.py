"""Messages of the control and bulk channels: MessagePack maps, typed and checked by msgspec.

The tag field `type` names the message. New fields take defaults, so that either side may be
newer within one protocol version. Does not know sockets.
"""

from typing import Annotated, Literal, TypeVar

import msgspec

from agent.ids import AgentName, Epoch, InstanceId, RunId
from agent.share import Assignment
from kernels.errors import WireError

__all__ = [
    "MAX_CONTROL_BYTES",
    "AgentMessage",
    "Assignment",
    "BulkError",
    "BulkReply",
    "BulkRequest",
    "Bye",
    "CoordinatorMessage",
    "Failed",
    "Heartbeat",
    "Hello",
    "Loading",
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

T = TypeVar("T")


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
    """Agent -> coordinator, every second; `progress` counts finished steps.

    `round_trip_s` is the least of this link of late, as the kernel measures it; None = not known.
    """

    progress: int
    memory_available_bytes: int
    resident_bytes: int
    kv_free_pages: int = 0
    epoch: Epoch = Epoch(0)
    round_trip_s: float | None = None


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


AgentMessage = Hello | Heartbeat | Loading | Ready | Failed | Bye
CoordinatorMessage = Welcome | Refused | Assignment | Release | Shutdown
BulkMessage = BulkRequest | BulkReply

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


def decode_bulk_message(data: bytes) -> BulkRequest | BulkReply:
    """Parse a message of the bulk channel.

    Raises:
        WireError: too long, not MessagePack, unknown type or a field of the wrong type.
    """
    message: BulkRequest | BulkReply = _decode(_bulk_decoder, data)
    return message


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    if len(data) > MAX_CONTROL_BYTES:
        raise WireError(f"message of {len(data)} bytes is longer than {MAX_CONTROL_BYTES}")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise WireError(f"message of {len(data)} bytes cannot be read: {e}") from e
