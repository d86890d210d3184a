"""One board: a real agent process that can be killed, frozen, cut off and slowed down."""

import signal
from pathlib import Path

from agent.emulation import FILE_VARIABLE
from tools.faults.cables import Cables
from tools.faults.process import MARK, Process

__all__ = ["Board"]

SLOWED = 0.1


class Board:
    """An agent by name, started at once.

    Args:
        name: of the agent.
        cables: how it reaches the coordinator.
        options: of `headwise agent`, after those that say whom to dial.
        bytes_per_s: the board that it plays; None for this machine as it is.
        root: for its log and cache.
        mark: this run's.

    Attributes:
        name: of the agent.
        impaired: what is wrong with it on purpose, "" = nothing.
    """

    def __init__(
        self,
        name: str,
        cables: Cables,
        options: tuple[str | Path, ...],
        bytes_per_s: float | None,
        root: Path,
        mark: str,
    ) -> None:
        self.name = name
        self.impaired = ""
        self._cables, self._options, self._rate = cables, options, bytes_per_s
        self._root = root
        self._file = root / f"{name}.rate"
        self._env = {MARK: mark}
        if bytes_per_s is not None:
            # A board that plays nothing must not look at it: it would serve without compiled code.
            self._env[FILE_VARIABLE] = str(self._file)
        self._process = self._start()

    def _start(self) -> Process:
        played: tuple[str, ...] = ()
        if self._rate is not None:
            self._file.write_text(f"{self._rate:g}\n")
            played = ("--emulate-bytes-per-s", f"{self._rate:g}")
        words = self._cables.words(self.name)
        cache = ("--cache-dir", self._root / f"{self.name}.cache")
        return Process(
            self._cables.prefix(self.name),
            ("agent", *words, "--threads", "1", *cache, *played, *self._options),
            self._env,
            self._root / f"{self.name}.log",
        )

    @property
    def process(self) -> Process:
        """The agent's process, the present one."""
        return self._process

    def kill(self) -> None:
        """End it without a chance to say so."""
        self._process.kill()

    def start(self) -> None:
        """Start it again, in good order if it still runs."""
        self._process.end()
        self._process = self._start()

    def freeze(self) -> None:
        """Stop all its threads."""
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._process.signal(signal.SIGCONT)

    def cut(self) -> None:
        """Pull its cable."""
        self._cables.cut(self.name)

    def mend(self) -> None:
        """Plug it in again."""
        self._cables.mend(self.name)

    def slow(self, share: float = SLOWED) -> None:
        """Have it read weights at a part of its rate."""
        self._write_rate(share)

    def hasten(self) -> None:
        """Let it be as fast as it was."""
        self._write_rate(1.0)

    def leave(self) -> None:
        """End it in good order, for ever."""
        self._process.end()
        self._cables.forget(self.name)

    def _write_rate(self, share: float) -> None:
        assert self._rate is not None, "only a board that plays one can be slowed down"
        self._file.write_text(f"{share * self._rate:g}\n")
