"""Where the coordinator is, and under which name this agent is known to it."""

import ipaddress
import re
import socket
from typing import NamedTuple

from agent.ids import AgentName, InstanceId
from kernels.errors import InputError, RemoteError

__all__ = ["Address", "check_name", "is_loopback", "parse_address", "resolve", "routing_id"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Address(NamedTuple):
    """Host name or numeric address, and TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return (
            f"tcp://[{self.host}]:{self.port}"
            if ":" in self.host
            else f"tcp://{self.host}:{self.port}"
        )


def parse_address(text: str) -> Address:
    """Parse tcp://HOST:PORT; an IPv6 address stands in brackets.

    Raises:
        InputError: anything else, or a host that no name service could be asked about.
    """
    match = re.fullmatch(r"tcp://(\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:/\s]+):(\d{1,5})", text)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise InputError(
            f"{text!r} is no coordinator address; write it like tcp://192.168.1.10:7070"
        )
    host = match[1].strip("[]")
    try:
        # What a lookup does first: found here, it is a typing error and not a silent network.
        host.encode("idna")
    except UnicodeError as e:
        raise InputError(
            f"{host!r} in {text!r} can be no host name ({_idna_reason(e)}); the parts between its "
            f"dots have 1 to 63 characters: write it like tcp://192.168.1.10:7070"
        ) from e
    return Address(host, int(match[2]))


def is_loopback(host: str) -> bool:
    """Tell whether a host, without brackets, is surely this machine; names are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def resolve(address: Address, attempt: int) -> Address:
    """Look the host up and return a numeric address; attempts go through all it has.

    Asked anew at every dial: a board's address changes with its DHCP lease. IPv4 comes first,
    because names such as localhost often list an IPv6 address that nobody listens on.

    Raises:
        RemoteError: the name cannot be resolved.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise RemoteError(f"host {address.host!r} cannot be resolved ({e.strerror})") from e
    except UnicodeError as e:
        # No OSError, although nothing but a name is wrong: an empty or too long part, a stray byte.
        raise RemoteError(f"host {address.host!r} cannot be resolved ({_idna_reason(e)})") from e
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    hosts = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return Address(hosts[attempt % len(hosts)], address.port)


def _idna_reason(error: UnicodeError) -> str:
    """Return what is wrong with a host name, without the words of the codec around it."""
    return str(error.__cause__ or error)


def check_name(name: str) -> AgentName:
    """Return a valid agent name.

    Raises:
        InputError: empty, too long or with other than letters, digits, dot, dash, underscore.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no agent name; use up to 63 letters, digits, dots, dashes and "
            f"underscores: --name pi-1"
        )
    return AgentName(name)


def routing_id(name: AgentName, instance_id: InstanceId) -> bytes:
    """Return the ZeroMQ routing id of one agent process, the same on all channels."""
    return f"{name}/{instance_id}".encode()
