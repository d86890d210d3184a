"""Where the admin socket of a coordinator lies, and whether somebody listens there.

`$XDG_RUNTIME_DIR/headwise/PORT.sock`, or `/tmp/headwise-UID/PORT.sock` without that variable. Only
the user who runs the coordinator (and root) may enter the directory.
"""

import os
import socket
import stat
import struct
from pathlib import Path

from kernels.errors import InputError, RemoteError, ResourceError

__all__ = [
    "DEFAULT_PORT",
    "admin_path",
    "connect",
    "find_admin_path",
    "make_admin_directory",
    "peer_of",
    "running_pid",
]

CONNECT_S = 5.0
# The kernel's sun_path holds 108 bytes, the last of them zero.
MAX_PATH_BYTES = 107
DEFAULT_PORT = 7070


def _directory() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # A relative path would mean another place for every command.
    if os.path.isabs(runtime):
        return Path(runtime) / "headwise"
    return Path(f"/tmp/headwise-{os.getuid()}")


def admin_path(port: int) -> Path:
    """Return where the coordinator with this control port listens.

    Raises:
        ResourceError: the path is longer than the kernel takes.
    """
    path = _directory() / f"{port}.sock"
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ResourceError(
            f"the admin socket {path} has a path of {len(os.fsencode(path))} bytes; at most "
            f"{MAX_PATH_BYTES} are possible: set XDG_RUNTIME_DIR to a shorter directory"
        )
    return path


def make_admin_directory(path: Path) -> None:
    """Make the directory of an admin socket, for its owner alone.

    Raises:
        ResourceError: it cannot be made, or others own it or may enter it.
    """
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(directory)
    except OSError as e:
        raise ResourceError(
            f"cannot make the directory {directory} for the admin socket: {e.strerror}; set "
            f"XDG_RUNTIME_DIR to a directory of yours"
        ) from e
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ResourceError(
            f"{directory} is no directory of user {os.getuid()}; set XDG_RUNTIME_DIR to one"
        )
    if found.st_mode & 0o077:
        raise ResourceError(f"others may enter {directory}; run: chmod 700 {directory}")


def find_admin_path(port: int | None) -> Path | None:
    """Return the admin socket of a running coordinator, or None if there is none.

    Without a port it is the one on 7070, or the only one there is.

    Raises:
        InputError: no port was given and several coordinators run.
    """
    if port is not None:
        path = admin_path(port)
        return path if running_pid(path) else None
    live = [path for path in sorted(_directory().glob("*.sock")) if running_pid(path)]
    usual = [path for path in live if path.stem == str(DEFAULT_PORT)]
    if len(live) > 1 and not usual:
        ports = ", ".join(path.stem for path in live)
        raise InputError(f"several coordinators run, on ports {ports}; say which one by its port")
    return next(iter(usual or live), None)


def running_pid(path: Path) -> int:
    """Return the process id of the coordinator that listens there, or 0."""
    try:
        with connect(path) as found:
            return peer_of(found)[0]
    except RemoteError:
        return 0


def connect(path: Path) -> socket.socket:
    """Return a connection to the coordinator that listens there.

    Raises:
        RemoteError: nobody listens, or it is another user's process.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(CONNECT_S)
        client.connect(os.fspath(path))
        uid = peer_of(client)[1]
        if uid not in (os.getuid(), 0) and os.getuid() != 0:
            raise RemoteError(f"the coordinator at {path} belongs to user {uid}, not to you")
    except OSError as e:
        client.close()
        raise RemoteError(f"no coordinator listens at {path} ({e.strerror or e})") from e
    except BaseException:
        client.close()
        raise
    return client


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return process id and user id of the other end; of a listener, who began to listen."""
    size = struct.calcsize("3i")
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = struct.unpack("3i", data)
    return int(pid), int(uid)
