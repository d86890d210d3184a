"""Threads that the system knows by name, too: `top -H` and /proc/PID/task/*/comm show it."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = ["NamedThread"]


class NamedThread(threading.Thread):
    """A daemon thread.

    Args:
        run: its work.
        name: the system keeps the first 15 bytes.
    """

    def __init__(self, run: Callable[[], None], name: str) -> None:
        super().__init__(target=run, name=name, daemon=True)

    def run(self) -> None:
        """Do the work."""
        # Python passes names on to the system from 3.14 on.
        with contextlib.suppress(OSError):
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(self.name)
        super().run()
