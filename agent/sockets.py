"""Options of the three kinds of socket (reference/transport.md section 4, measured).

`ROUTER_MANDATORY` makes a send to a closed link fail at once instead of vanishing; `IMMEDIATE`
keeps messages from queueing for a peer that is not there; heartbeats plus TCP_MAXRT notice a
frozen or cut-off peer, and the deadline of each phase covers the rest.

Only the dialling side sends heartbeats. Each names the time after which the other side, too, may
take the link for dead, so both notice. A ROUTER that sent its own would be at the mercy of its
peers: libzmq 4.3.5 aborts the process (`!_io_error`) when a heartbeat is due on a link whose peer
left while its messages filled the queue, or was replaced under its routing id.
"""

from typing import NamedTuple

import zmq

from agent.curve import ClientCurve, ServerCurve
from kernels.errors import ResourceError

__all__ = ["BULK", "CONTROL", "HOT", "SocketKind", "bind_port", "set_options"]


class SocketKind(NamedTuple):
    """Option values of one channel."""

    high_water_mark: int
    # Messages that wait unread from each peer of a ROUTER: its memory is at their mercy.
    router_receives: int
    max_message_bytes: int
    heartbeat_ms: int
    heartbeat_timeout_ms: int
    tcp_max_retransmit_ms: int


HOT = SocketKind(64, 4, 16 << 20, 500, 1500, 3000)
CONTROL = SocketKind(1000, 100, 1 << 20, 1000, 3000, 5000)
BULK = SocketKind(16, 16, 4 << 20, 1000, 5000, 10000)


def set_options(
    socket: zmq.Socket[bytes], kind: SocketKind, curve: ServerCurve | ClientCurve | None = None
) -> None:
    """Set the options and keys of one channel on a socket before it binds or connects."""
    if curve is not None:
        curve.apply(socket)
    is_router = socket.type == zmq.ROUTER
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, kind.high_water_mark)
    socket.setsockopt(zmq.RCVHWM, kind.router_receives if is_router else kind.high_water_mark)
    socket.setsockopt(zmq.MAXMSGSIZE, kind.max_message_bytes)
    socket.setsockopt(zmq.TCP_MAXRT, kind.tcp_max_retransmit_ms)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    socket.setsockopt(zmq.IPV6, 1)
    if is_router:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    else:
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.HEARTBEAT_IVL, kind.heartbeat_ms)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, kind.heartbeat_timeout_ms)
        socket.setsockopt(zmq.HEARTBEAT_TTL, kind.heartbeat_timeout_ms)


def bind_port(socket: zmq.Socket[bytes], endpoint: str) -> int:
    """Bind a socket to a tcp endpoint, port `*` for a free one, and return the port.

    Raises:
        ResourceError: the port is taken, or the address is none of this machine.
    """
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as e:
        socket.close(linger=0)
        raise ResourceError(
            f"cannot bind {endpoint}: {zmq.strerror(e.errno or 0)}; is another coordinator "
            f"using the port, and is the address one of this machine?"
        ) from e
    return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
