"""The join file: all that one agent needs to find its coordinator and be let in.

Written by `headwise keys add` on the coordinator, carried to the board by its owner, read by
`headwise agent --join`. It holds a secret: whoever has the file is that agent.
"""

import os
from pathlib import Path

import msgspec

from agent.address import check_name, parse_address
from agent.curve import ClientCurve, KeyPair, check_key, is_key_pair, require_curve
from agent.ids import AgentName
from agent.private_files import read_private
from kernels.errors import InputError

__all__ = ["JoinInfo", "decode_join_info", "encode_join_info", "read_join_fd", "read_join_file"]

MAX_BYTES = 4096
VERSION = 1


class JoinInfo(msgspec.Struct, frozen=True):
    """One agent's way into one cluster.

    `coordinator` is tcp://HOST:PORT, `coordinator_key` the coordinator's public key; `public`
    and `secret` are the agent's own pair.
    """

    name: AgentName
    coordinator: str
    coordinator_key: str
    public: str
    secret: str
    version: int = VERSION

    def __repr__(self) -> str:
        return f"JoinInfo({self.name!r}, {self.coordinator!r}, secret hidden)"

    @property
    def curve(self) -> ClientCurve:
        """What the agent's sockets take."""
        return ClientCurve(self.coordinator_key, KeyPair(self.public, self.secret))


def encode_join_info(info: JoinInfo) -> bytes:
    """Return the text of a join file."""
    return msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n"


def decode_join_info(data: bytes, where: str) -> JoinInfo:
    """Parse and check the text of a join file.

    Args:
        data: its bytes.
        where: names the file in errors, which never show what is in it.

    Raises:
        InputError: it is no join file, or of another release.
        ResourceError: this machine cannot encrypt links.
    """
    again = "make it anew with `headwise keys add` on the coordinator"
    try:
        info = msgspec.json.decode(data, type=JoinInfo)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # What msgspec says may quote the secret.
        raise InputError(f"{where} is no join file; {again}") from None
    if info.version != VERSION:
        raise InputError(f"{where} is a join file of version {info.version}, this release reads "
                         f"version {VERSION}; {again}")  # fmt: skip
    check_name(info.name)
    parse_address(info.coordinator)
    check_key(info.coordinator_key, f"coordinator_key in {where}")
    check_key(info.public, f"public in {where}")
    check_key(info.secret, f"secret in {where}")
    require_curve()
    if not is_key_pair(KeyPair(info.public, info.secret)):
        raise InputError(f"the two keys in {where} do not belong together; {again}")
    return info


def read_join_file(path: Path) -> JoinInfo:
    """Read a join file.

    Raises:
        InputError: it cannot be read, others may read it too, or it is no join file.
    """
    return decode_join_info(read_private(path, MAX_BYTES), f"join file {path}")


def read_join_fd(fd: int) -> JoinInfo:
    """Read a join file from an inherited pipe and close it.

    Raises:
        InputError: there is no such pipe, or something else in it.
    """
    try:
        with os.fdopen(fd, "rb") as pipe:
            data = pipe.read(MAX_BYTES)
    except OSError as e:
        raise InputError(f"--join-fd {fd} cannot be read ({e.strerror})") from e
    return decode_join_info(data, f"--join-fd {fd}")
