"""The cable between each board and the coordinator: how to dial through it, and how to pull it."""

import random
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["Cables", "free_ports"]

N_PORTS = 3  # control, hot, bulk
_RANDOM = random.SystemRandom()


class Cables(Protocol):
    """Links that can be cut; a cut one delivers nothing, in neither direction, and stays open."""

    name: str

    def serve_prefix(self) -> Sequence[str]:
        """Return what starts the coordinator's process."""

    def serve_words(self) -> Sequence[str | Path]:
        """Return the options of `headwise serve` that say where to listen."""

    @property
    def port(self) -> int:
        """The coordinator's control port."""

    def prefix(self, board: str) -> Sequence[str]:
        """Return what starts a board's process."""

    def words(self, board: str) -> Sequence[str | Path]:
        """Return the options of `headwise agent` that say who it is and whom to dial."""

    def cut(self, board: str) -> None:
        """Pull a board's cable."""

    def mend(self, board: str) -> None:
        """Plug it in again."""

    def forget(self, board: str) -> None:
        """Free what a board that will not come back has used."""

    def close(self) -> None:
        """Take the cables away."""


def free_ports() -> int:
    """Return the first of three free loopback ports in a row.

    They lie below those that the system lends to outgoing connections.
    """
    words = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    highest = min(int(words[0]), 32_768) - N_PORTS
    while True:
        port = _RANDOM.randint(10_000, highest)
        try:
            for i in range(N_PORTS):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + i))
        except OSError:
            continue
        return port
