"""Stop strings in streamed text: lets through what is certain, holds back what may begin one.

The stop string that is complete first ends the text, the longest one where several end at the
same character; so the text does not depend on how it was cut into pieces. Works on whole
characters: `weights.tokenizer` joins the bytes. Pure.
"""

from collections.abc import Sequence

from kernels.errors import PromptError

__all__ = ["StopMatcher"]


class StopMatcher:
    """Watches one text for its stop strings.

    Args:
        stops: strings that end the text; the text ends before them. May be empty.

    Attributes:
        matched: the stop string that ended the text, or None.

    Raises:
        PromptError: an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise PromptError("a stop string is empty; give at least one character, or no --stop")
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece of text.

        Returns:
            The text that is now certain to stand before any stop string, and whether a stop
            string has ended the text, now or earlier; nothing is returned after it.
        """
        if self.matched is not None:
            return "", True
        text = self._held + text
        found = [(at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            _, at, self.matched = min(found)
            self._held = ""
            return text[:at], True
        n_held = self._n_held(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held], False

    def flush(self) -> str:
        """Return the text still held back: the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _n_held(self, text: str) -> int:
        """Return the length of the longest end of the text that may begin a stop string."""
        for n in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[len(text) - n :]
            if any(stop.startswith(tail) for stop in self._stops):
                return n
        return 0
