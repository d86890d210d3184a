"""Faults carried out on boards, and made good again when their time is over."""

import heapq
import itertools
import time
from collections.abc import Callable

from kernels.errors import RemoteError
from tools.faults.asking import Wish
from tools.faults.board import Board
from tools.faults.schedule import Fault, Kind
from tools.faults.site import Site

__all__ = ["MAX_GUESTS", "Strikes"]

MAX_GUESTS = 1
WISH_S = 60.0
# A guest that leaves is drained first; the text being written may go on for a while.
LEAVE_S = 120.0
# Boards that cannot hold anything while it lasts; a slow one can.
AWAY = frozenset({Kind.KILL, Kind.FREEZE, Kind.CUT, Kind.DRAIN})


class Strikes:
    """Knows which boards are impaired, how, and until when.

    Args:
        site: whose boards.
        tell: where a line about each fault goes.

    Attributes:
        mishaps: what went wrong that was not meant to.
    """

    def __init__(self, site: Site, tell: Callable[[str], None]) -> None:
        self._site, self._tell = site, tell
        self._impaired: dict[str, Kind] = {}
        self._guests: set[str] = set()
        # Monotonic time, a number that no other has, what to do.
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count(1)
        self._wishes: dict[str, Wish] = {}
        self.mishaps: list[str] = []

    @property
    def healthy(self) -> list[str]:
        """Boards that nothing is wrong with and that are no guests, by name."""
        return sorted(self._site.boards.keys() - self._impaired.keys() - self._guests)

    @property
    def holding(self) -> list[str]:
        """Boards that can hold a part of the model, by name: healthy and slow ones."""
        away = {name for name, kind in self._impaired.items() if kind in AWAY}
        return sorted(self._site.boards.keys() - away)

    @property
    def quiet(self) -> bool:
        """Whether every fault is over."""
        return not self._due

    def may(self, kind: Kind) -> bool:
        """Whether another fault of this kind has room: guests are few."""
        return kind is not Kind.JOIN or len(self._guests) < MAX_GUESTS

    def strike(self, fault: Fault, name: str) -> None:
        """Carry a fault out on a board; for a join the board is a new one."""
        boards = self._site.boards
        if fault.kind is Kind.JOIN:
            self._guests.add(name)
            self._site.add(name)
            self._later(fault.hold_s, lambda: self._see_off(name))
            return
        board = boards[name]
        self._impaired[name] = fault.kind
        match fault.kind:
            case Kind.KILL:
                board.kill()
                self._heal_later(fault, board, board.start)
            case Kind.FREEZE:
                board.freeze()
                self._heal_later(fault, board, board.thaw)
            case Kind.CUT:
                board.cut()
                self._heal_later(fault, board, board.mend)
            case Kind.SLOW:
                board.slow()
                self._heal_later(fault, board, board.hasten)
            case Kind.DRAIN:
                self._drain(name)
                self._heal_later(fault, board, lambda: self._undrain(name))

    def heal_due(self) -> None:
        """Make good what is over by now; start boards again that have ended by themselves."""
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, heal = heapq.heappop(self._due)
            heal()
        for name, board in self._site.boards.items():
            if self._impaired.get(name) is not Kind.KILL and not board.process.runs:
                self.mishaps.append(f"{name} ended by itself: {board.process.tail()}")
                self._tell(self.mishaps[-1])
                board.start()

    def provoke(self, name: str, hold_s: float) -> None:
        """Have the placement change without a fault: drain a board for a while."""
        self._drain(name)
        self._later(hold_s, lambda: self._undrain(name))

    def _heal_later(self, fault: Fault, board: Board, heal: Callable[[], None]) -> None:
        def over() -> None:
            heal()
            self._impaired.pop(board.name, None)
            self._tell(f"{fault.number} {fault.kind} {board.name} is over")

        self._later(fault.hold_s, over)

    def _later(self, after_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + after_s, next(self._count), act))

    def _drain(self, name: str) -> None:
        self._impaired[name] = Kind.DRAIN
        self._wishes[name] = self._site.drain(name)

    def _undrain(self, name: str) -> None:
        # The text being written may be longer than the drain lasts: not to be waited for.
        wish = self._wishes.pop(name)
        wish.wait(0.0)
        self._check(name, "drain", wish)
        wish = self._site.drain(name, on=False)
        if not wish.wait(WISH_S):
            self._mishap(f"undrain {name} was not answered: {wish.error}")
        self._impaired.pop(name, None)

    def _see_off(self, name: str) -> None:
        """Drain a guest; it leaves once it has nothing any more."""
        self._drain(name)
        given_up_s = time.monotonic() + LEAVE_S

        def look() -> None:
            wish = self._wishes[name]
            if not (wish.is_over or time.monotonic() > given_up_s):
                self._later(0.2, look)
                return
            if not wish.wait(0.0):
                self._mishap(f"guest {name} was not drained in {LEAVE_S:g} s {wish.error}".strip())
            del self._wishes[name], self._impaired[name]
            self._guests.discard(name)
            self._site.boards.pop(name).leave()
            self._site.drain(name, on=False).wait(WISH_S)
            self._tell(f"guest {name} has left")

        self._later(0.2, look)

    def _check(self, name: str, what: str, wish: Wish) -> None:
        if wish.error:
            self._mishap(f"{what} {name} was refused: {wish.error}")

    def _mishap(self, text: str) -> None:
        self.mishaps.append(text)
        self._tell(text)

    def require_running(self) -> None:
        """Raise RemoteError if the coordinator has ended: nothing else would have an answer."""
        if not self._site.runs:
            raise RemoteError("the coordinator has ended by itself; its log says why")
