"""Readers of streams: they ask for texts without pause and note each token as it comes."""

import random
import threading
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from coordinator.admin_messages import Began, Finished, Piece
from kernels.errors import HeadwiseError
from tools.faults.asking import Line
from tools.faults.prompts import Prompt
from tools.faults.verdict import Ending, Stream

__all__ = ["Live", "Phase", "Streams"]

# After a failure: nobody asks a broken cluster a thousand times a second.
PAUSE_S = 0.1


class Phase(Enum):
    """What a stream is doing."""

    IN_LINE = 1
    PREFILL = 2
    DECODE = 3


class Live:
    """A stream that has not ended.

    Attributes:
        number: from 1, over all readers.
        prompt: with the text it must give.
        phase: what it is doing, as far as its reader can tell.
        tokens: so far.
        sufficed: see `verdict.Stream`.
        asked_s: monotonic time of the request.
    """

    def __init__(self, number: int, prompt: Prompt) -> None:
        self.number, self.prompt = number, prompt
        self.phase = Phase.IN_LINE
        self.tokens: list[int] = []
        self.sufficed = True
        self.asked_s = time.monotonic()
        self.line: Line | None = None

    @property
    def n_left(self) -> int:
        """How many tokens are still to come."""
        return len(self.prompt.wanted) - len(self.tokens)


class Streams:
    """Readers that go on until they are told to stop; each asks for one text at least.

    Args:
        path: of the coordinator's admin socket.
        prompts: what to ask for, in an order that the seed gives.
        n_readers: how many ask at a time.
        seed: of the order.
        deadline_s: from request to end; whoever has not ended then is lost.

    Attributes:
        ended: all that have ended.
    """

    def __init__(
        self, path: Path, prompts: list[Prompt], n_readers: int, seed: int, deadline_s: float
    ) -> None:
        self._path, self._prompts, self._deadline_s = path, prompts, deadline_s
        self._rng = random.Random(seed)
        self._changed = threading.Condition()
        self._live: dict[int, Live] = {}
        self._n_begun = 0
        self._suffice = True
        self._stopping = self._is_cut_off = False
        self.ended: list[Stream] = []
        self._threads = [
            threading.Thread(target=self._read_on, name=f"reader-{i}", daemon=True)
            for i in range(n_readers)
        ]
        for thread in self._threads:
            thread.start()

    def running(self) -> list[Live]:
        """Return the streams that are being written: prompt or text."""
        with self._changed:
            return [live for live in self._live.values() if live.phase is not Phase.IN_LINE]

    def await_any(self, fits: Callable[[Live], bool], within_s: float) -> bool:
        """Wait until a stream fits, at most so long."""
        with self._changed:
            return self._changed.wait_for(
                lambda: any(fits(live) for live in self._live.values()), within_s
            )

    def note(self, suffice: bool) -> None:
        """Note whether the boards that are left can hold the model, from now on."""
        with self._changed:
            self._suffice = suffice
            for live in self._live.values():
                live.sufficed = live.sufficed and suffice

    def give_up_late(self) -> None:
        """End the streams whose time is over: they are lost."""
        with self._changed:
            for live in self._live.values():
                if time.monotonic() - live.asked_s > self._deadline_s and live.line is not None:
                    live.line.shut()

    def stop(self) -> None:
        """Ask for no more texts, and wait for those that are being written."""
        self._stopping = True
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.5)
                self.give_up_late()

    def cut_off(self) -> None:
        """Stop at once; what is being written counts as nothing."""
        self._stopping = self._is_cut_off = True
        with self._changed:
            lines = [live.line for live in self._live.values() if live.line is not None]
            for line in lines:
                line.shut()
        for thread in self._threads:
            thread.join()

    def _read_on(self) -> None:
        while True:
            with self._changed:
                self._n_begun += 1
                live = Live(self._n_begun, self._rng.choice(self._prompts))
                live.sufficed = self._suffice
                self._live[live.number] = live
            stream = self._read(live)
            with self._changed:
                del self._live[live.number]
                if stream.ending is not Ending.SILENT or not self._is_cut_off:
                    self.ended.append(stream)
                self._changed.notify_all()
            if self._stopping:
                return
            if stream.ending is not Ending.FINISHED:
                time.sleep(PAUSE_S)

    def _read(self, live: Live) -> Stream:
        ending, result, reason = Ending.SILENT, None, ""
        try:
            live.line = Line(self._path)
            for reply in live.line.ask(live.prompt.ask(self._deadline_s)):
                match reply:
                    case Began():
                        self._note(live, Phase.PREFILL)
                    case Piece(id, _) if id is not None:
                        live.tokens.append(id)
                        self._note(live, Phase.DECODE)
                    case Finished(_, found, _):
                        ending, result = Ending.FINISHED, tuple(found.token_ids)
        except HeadwiseError as e:
            reason = str(e)
            # The client's own troubles have a cause; what the coordinator said has none.
            if e.__cause__ is None:
                ending = Ending.FAILED
        finally:
            if live.line is not None:
                live.line.close()
        wanted = live.prompt.wanted
        return Stream(
            live.number, ending, tuple(live.tokens), result, wanted, live.sufficed, reason
        )

    def _note(self, live: Live, phase: Phase) -> None:
        with self._changed:
            live.phase = phase
            self._changed.notify_all()
