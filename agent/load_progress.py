"""How far loading is, as the coordinator is told a few times a second."""

import time
from collections.abc import Callable

from agent.events import Event, LoadKey, Progress

__all__ = ["LoadProgress"]

PROGRESS_S = 0.25


class LoadProgress:
    """Posts how far loading is, a few times a second."""

    def __init__(self, post: Callable[[Event], None], key: LoadKey, total_bytes: int) -> None:
        self._post = post
        self._key = key
        self._total_bytes = total_bytes
        self._posted_s = 0.0
        self.done_bytes = 0

    def add(self, n_bytes: int) -> None:
        """Count bytes that are on the board."""
        self.reach(self.done_bytes + n_bytes)

    def reach(self, done_bytes: int) -> None:
        """Set how many bytes are on the board."""
        self.done_bytes = done_bytes
        now_s = time.monotonic()
        if now_s - self._posted_s >= PROGRESS_S:
            self._posted_s = now_s
            self._post(Progress(self._key, done_bytes, self._total_bytes))

    def finish(self) -> None:
        """Post that all is there."""
        self._post(Progress(self._key, self._total_bytes, self._total_bytes))
