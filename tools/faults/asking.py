"""Questions to a coordinator that another thread can stop waiting for."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from coordinator.admin_client import AdminClient
from coordinator.admin_messages import Done, Question, Reply
from coordinator.admin_path import connect
from kernels.errors import HeadwiseError

__all__ = ["Line", "Wish"]


class Line:
    """One connection to the admin socket, for one question.

    Args:
        path: of the socket.

    Raises:
        RemoteError: nobody listens.
    """

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self._client = AdminClient(self._connection, int(path.stem))

    def ask(self, question: Question) -> Iterator[Reply]:
        """Yield the answers, as `AdminClient.ask`; they end early after `shut`."""
        return self._client.ask(question)

    def shut(self) -> None:
        """Have whoever waits for an answer wait no more."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; only once nobody reads from it."""
        self._connection.close()


class Wish:
    """A question that is answered by `Done` in its own time; a thread waits for it.

    Attributes:
        error: why it was refused, "" = it was not.
    """

    def __init__(self, path: Path, question: Question) -> None:
        self._line = Line(path)
        self._done = False
        self.error = ""
        self._thread = threading.Thread(target=self._ask, args=(question,), daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether there is an answer, or will never be one."""
        return not self._thread.is_alive()

    def wait(self, within_s: float) -> bool:
        """Wait for the answer, at most so long, and give it up then; whether it came."""
        self._thread.join(within_s)
        self._line.shut()
        self._thread.join()
        self._line.close()
        return self._done

    def _ask(self, question: Question) -> None:
        try:
            for reply in self._line.ask(question):
                self._done = self._done or isinstance(reply, Done)
        except HeadwiseError as e:
            self.error = str(e)
