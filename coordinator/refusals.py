"""Which refusals are worth an answer and a line in the log. Pure.

Whoever is refused may go on sending, thousands of messages a second: it is told now and then.
"""

__all__ = ["Refusals"]

# Agents wait for seconds before they try again.
PERIOD_S = 1.0
MAX_LINKS = 1024


class Refusals:
    """Refusals of one channel.

    Attributes:
        n_refused: how many there were, answered or not.
    """

    def __init__(self) -> None:
        self.n_refused = 0
        # Those of the last period, the oldest first.
        self._answered_s: dict[bytes, float] = {}

    def note(self, link: bytes, now_s: float) -> tuple[bool, bool]:
        """Count a refusal; return whether to answer it and whether to log it."""
        self.n_refused += 1
        to_log = self.n_refused & (self.n_refused - 1) == 0
        self._forget(now_s)
        if link in self._answered_s:
            return False, to_log
        self._answered_s[link] = now_s
        return True, to_log

    def _forget(self, now_s: float) -> None:
        """Drop what is older than a period, and the oldest where there is no room for one more."""
        while self._answered_s:
            oldest, answered_s = next(iter(self._answered_s.items()))
            if now_s - answered_s < PERIOD_S and len(self._answered_s) < MAX_LINKS:
                return
            del self._answered_s[oldest]
