"""Asking the coordinator that runs on this machine, over its admin socket."""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator

from coordinator.admin_messages import (
    MAX_REPLY_BYTES,
    Failed,
    Notice,
    Question,
    Reply,
    decode_reply,
    encode_line,
)
from coordinator.admin_path import connect, find_admin_path
from kernels.errors import InputError, RemoteError

__all__ = ["AdminClient", "await_coordinator", "find_coordinator"]

# Three beats of a coordinator that has nothing else to tell.
ANSWER_S = 30.0
CHUNK_BYTES = 65536
# How often to look for a coordinator that is starting; nothing announces its socket.
LOOK_S = 0.1


class AdminClient:
    """One question and its answers; closing it earlier ends what was asked for.

    Args:
        connection: to the coordinator; closed with this.
        port: the coordinator's control port, for texts.
    """

    def __init__(self, connection: socket.socket, port: int) -> None:
        self._connection = connection
        self.port = port

    def ask(self, question: Question) -> Iterator[Reply]:
        """Ask, and yield the answers as they come until the coordinator closes.

        Raises:
            RemoteError: what was asked for failed, or the coordinator has gone.
        """
        data = bytearray()
        try:
            self._connection.settimeout(ANSWER_S)
            # Whoever is not let in has been told so already, which is then read below.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._connection.sendall(encode_line(question))
            while chunk := self._connection.recv(CHUNK_BYTES):
                data += chunk
                *lines, rest = data.split(b"\n") if b"\n" in chunk else (data,)
                data = bytearray(rest)
                for line in lines:
                    reply = decode_reply(bytes(line))
                    if isinstance(reply, Failed):
                        raise RemoteError(reply.reason)
                    if reply != Notice(""):
                        yield reply
                if len(data) > MAX_REPLY_BYTES:
                    raise RemoteError(f"the coordinator answers over {MAX_REPLY_BYTES} bytes")
        except TimeoutError as e:
            raise RemoteError(
                f"the coordinator on port {self.port} has not answered for {ANSWER_S:g} s; look "
                f"at its log"
            ) from e
        except OSError as e:
            raise self._gone() from e

    def answer(self, question: Question) -> Reply:
        """Ask and return the one answer.

        Raises:
            RemoteError: as `ask`.
        """
        for reply in self.ask(question):
            return reply
        raise self._gone()

    def wait_closed(self, within_s: float) -> bool:
        """Wait until the coordinator closes the connection; False if it does not in time."""
        deadline_s = time.monotonic() + within_s
        try:
            while (left_s := deadline_s - time.monotonic()) > 0:
                self._connection.settimeout(left_s)
                if not self._connection.recv(CHUNK_BYTES):
                    return True
        except TimeoutError:
            return False
        except OSError:
            return True
        return False

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> "AdminClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _gone(self) -> RemoteError:
        return RemoteError(
            f"the coordinator on port {self.port} has gone; start it again with `headwise serve`"
        )


def find_coordinator(port: int | None) -> AdminClient:
    """Return a client of the coordinator that runs here, on this port or the only one.

    Raises:
        RemoteError: none runs.
        InputError: no port was given and several run.
    """
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"port {port}; 1 to 65535 are possible")
    path = find_admin_path(port)
    if path is None:
        where = f" on port {port}" if port is not None else ""
        raise RemoteError(
            f"no coordinator of yours runs on this machine{where}; start one with `headwise serve`"
        )
    return AdminClient(connect(path), int(path.stem))


def await_coordinator(port: int | None, within_s: float) -> AdminClient:
    """Return a client as `find_coordinator` does, of one that is just starting too.

    Raises:
        RemoteError: none runs within the time.
        InputError: as `find_coordinator`.
    """
    began_s = time.monotonic()
    told = False
    while True:
        try:
            return find_coordinator(port)
        except RemoteError as e:
            # Written so that NaN ends the wait.
            if not time.monotonic() - began_s < within_s:
                if not told:
                    raise
                raise RemoteError(f"after {within_s:g} s of waiting {e}") from e
        if not told:
            told = True
            print("waiting for the coordinator to start", file=sys.stderr, flush=True)
        time.sleep(LOOK_S)
