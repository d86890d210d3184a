"""Atoms verified before a plan names them, while the board rests.

When another board is lost, the plan that takes its place names atoms that have been here all the
time. To hash them only then is what a text would wait for: a second for a third of TinyLlama on
one slow core. A thread of the lowest priority hashes them before, one atom at a time, and gives
way between two of them as soon as the board has anything else to do.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from agent.leases import n_bytes_of
from agent.store import Store
from weights.manifest import AtomLocation, content_hash

__all__ = ["Ahead", "Rest"]

log = logging.getLogger(__name__)

# A board that has served nothing for so long rests. Phases of a text on a slow cluster are closer.
REST_S = 2.0
_LOWEST_PRIORITY = 19


class Rest:
    """Tells whether a board has had nothing to do for a while; from any thread.

    Args:
        n_done: counts what the board has served; None while it is busy with something that is
            not counted.
        for_s: how long nothing must have been served.
    """

    def __init__(self, n_done: Callable[[], int | None], for_s: float = REST_S) -> None:
        self._n_done = n_done
        self._for_s = for_s
        self._last: int | None = None
        self._since_s = time.monotonic()

    def __call__(self) -> bool:
        """Return whether it rests; to be asked often, since it looks only then."""
        n_done, now_s = self._n_done(), time.monotonic()
        if n_done is None or n_done != self._last:
            self._last, self._since_s = n_done, now_s
        return n_done is not None and now_s - self._since_s >= self._for_s


class Ahead:
    """Verifies what a store has beyond the plans so far; for the bulk thread alone.

    Args:
        rests: tells whether the board has nothing else to do; called from any thread.

    Attributes:
        done: whether nothing is left to be verified, as far as memory goes.
    """

    def __init__(self, rests: Callable[[], bool]) -> None:
        self._rests = rests
        self._round: _Round | None = None
        self.done = False

    def look(self, store: Store, memory_bytes: int) -> None:
        """Take in what a round has found, and begin another one if the board rests.

        Args:
            store: where the atoms are.
            memory_bytes: what weights and KV may take: more would push out what is in use.
        """
        if self._round is not None and self._round.is_alive():
            return
        self._take_in()
        if not self._rests():
            return
        atoms = store.unverified(memory_bytes)
        if atoms is None:
            return
        self.done = not atoms
        if atoms:
            self._round = _Round(store, atoms, self._rests)
            self._round.start()

    def stop(self) -> None:
        """Give way: the atom at hand is finished for nothing. There may be new ones afterwards."""
        if self._round is not None:
            self._round.stopping = True
        self._take_in()
        self.done = False

    def _take_in(self) -> None:
        found, self._round = self._round, None
        if found is None:
            return
        sound, damaged = list(found.sound), list(found.damaged)
        found.store.take_ahead(sound, damaged)
        if sound or damaged:
            log.info(
                "verified ahead atoms=%d bytes=%d damaged=%d of=%d", len(sound),
                n_bytes_of(sound), len(damaged), found.n_atoms,
            )  # fmt: skip


class _Round(threading.Thread):
    """Hashes some atoms, until it is told to stop or the board has something to do.

    Attributes:
        stopping: set to end it.
        sound: those that have their hash; grows.
        damaged: those that have another one.
    """

    def __init__(
        self, store: Store, atoms: Sequence[AtomLocation], rests: Callable[[], bool]
    ) -> None:
        super().__init__(name="ahead", daemon=True)
        self.store = store
        # As they are now: a store that maps another file keeps nothing of this.
        self._blobs = [(atom, store.blob(atom)) for atom in atoms]
        self._rests = rests
        self.n_atoms = len(atoms)
        self.stopping = False
        self.sound: list[AtomLocation] = []
        self.damaged: list[AtomLocation] = []

    def run(self) -> None:
        """Hash one atom after the other."""
        # On Linux a thread's own; where that is refused it competes like any other.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        for atom, blob in self._blobs:
            if self.stopping or not self._rests():
                return
            is_sound = content_hash(blob.data) == atom.hash
            (self.sound if is_sound else self.damaged).append(atom)
