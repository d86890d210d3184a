"""How long a link's round trip takes, as the kernel measures it anyway: no message of its own.

libzmq's PINGs are answered at once, so the least round trip of late is the link's. The average is
of no use: it counts how long the other side's kernel waits with acknowledging what nobody answers.
"""

import os
import socket
import struct

__all__ = ["round_trip_s"]

# Of struct tcp_info: the least round trip of the last five minutes (tcp_min_rtt_wlen), in us.
_MIN_RTT = struct.Struct("=I")
_MIN_RTT_AT = 148
_UNKNOWN = 0xFFFFFFFF


def round_trip_s(fd: int) -> float | None:
    """Return the least round trip of late of a TCP connection, None if it is not known.

    Args:
        fd: of the connection, which may be closed or another's by now; never read from.
    """
    try:
        with socket.socket(fileno=os.dup(fd)) as link:
            info = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        found = int(_MIN_RTT.unpack_from(info, _MIN_RTT_AT)[0])
    except (OSError, struct.error):
        # Closed, no TCP, or a kernel that measures none.
        return None
    return None if found == _UNKNOWN else 1e-6 * found
