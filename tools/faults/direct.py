"""No cables at all: boards dial the coordinator's loopback ports, and nothing can be cut."""

from collections.abc import Sequence
from pathlib import Path

from kernels.errors import UsageError
from tools.faults.cables import free_ports

__all__ = ["DirectCables"]


class DirectCables:
    """Loopback links that stand as long as their ends do; see `cables.Cables`."""

    name = "direct"

    def __init__(self) -> None:
        self._port = free_ports()

    @property
    def port(self) -> int:
        """The coordinator's control port."""
        return self._port

    def serve_prefix(self) -> Sequence[str]:
        """Return what starts the coordinator's process: nothing else."""
        return ()

    def serve_words(self) -> Sequence[str | Path]:
        """Return where the coordinator listens."""
        return ("--port", str(self._port), "--insecure")

    def prefix(self, board: str) -> Sequence[str]:
        """Return what starts a board's process: nothing else."""
        return ()

    def words(self, board: str) -> Sequence[str | Path]:
        """Return whom a board dials."""
        return ("--coordinator", f"tcp://127.0.0.1:{self._port}", "--name", board)

    def cut(self, board: str) -> None:
        """Refuse: there is nothing to cut."""
        raise UsageError(f"board {board!r} has no cable; use a lab or a proxy")

    def mend(self, board: str) -> None:
        """Do nothing: nothing was cut."""

    def forget(self, board: str) -> None:
        """Do nothing: a board uses nothing."""

    def close(self) -> None:
        """Do nothing: there is nothing to take away."""
