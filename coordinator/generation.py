"""One text as its user sees it: an iterator of tokens, and a result."""

from collections.abc import Iterator

from coordinator.results import Result, Token
from coordinator.writer import Writer

__all__ = ["Generation"]


class Generation:
    """An iterator of tokens; `result` says all that was written.

    A text that is left alone half-way (`break`, or no reference any more) ends at once and frees
    its context: the writer does not refer back, so no collector has to find a cycle and nothing
    happens in another thread.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._tokens = writer.tokens()

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._tokens)

    def close(self) -> None:
        """Stop now and free the context on all agents; harmless when already finished."""
        self._tokens.close()

    def result(self) -> Result:
        """Return what was written so far, complete once the iterator is exhausted or closed."""
        return self._writer.result()
