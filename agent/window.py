"""How much a receiver asks for at a time: wide when the cluster is idle, narrow while it works.

What is on its way in bulk is what a hot frame waits behind, so the window is the delay
(reference/transport.md section 6). Pure.
"""

__all__ = ["CHUNK_BYTES", "CREDITS", "MIN_CHUNK_BYTES", "NARROW_BYTES", "Window"]

CHUNK_BYTES = 256 << 10
CREDITS = 4
# What a holder asks for while a request runs: 0.13 ms of a 1 Gbit link, 1.3 ms of 100 Mbit/s.
NARROW_BYTES = 16 << 10
MIN_CHUNK_BYTES = 4 << 10
# Under a hint the link rests this many times as long as the last chunk took.
PAUSE = 3.0
MAX_PAUSE_S = 1.0


class Window:
    """The receiver's window.

    Args:
        chunk_bytes: most bytes of one request when nobody asks for less.
        credits: most open requests.
        pause: how many times as long as the last chunk took the link rests under a hint.

    Attributes:
        chunk_bytes: most bytes of the next request.
        credits: most open requests now.
        not_before_s: when the next request may go out.
    """

    def __init__(
        self, chunk_bytes: int = CHUNK_BYTES, credits: int = CREDITS, pause: float = PAUSE
    ) -> None:
        self._wide = chunk_bytes, credits
        self._pause = pause
        self.chunk_bytes, self.credits = self._wide
        self.not_before_s = float("-inf")

    def on_reply(self, hint_bytes: int, sent_s: float, now_s: float) -> None:
        """Follow a holder's hint, 0 for none, in the reply to a request sent at `sent_s`."""
        chunk_bytes, credits = self._wide
        if hint_bytes <= 0:
            self.chunk_bytes, self.credits = self._wide
            self.not_before_s = float("-inf")
            return
        self.chunk_bytes = min(chunk_bytes, max(hint_bytes, MIN_CHUNK_BYTES))
        self.credits = max(1, min(credits, hint_bytes // self.chunk_bytes))
        # Slow links rest longer: the share of the link stays the same whatever its rate.
        pause_s = min(self._pause * max(now_s - sent_s, 0.0), MAX_PAUSE_S)
        self.not_before_s = now_s + pause_s
