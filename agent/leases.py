"""What the members on this board use of one model, so that nobody takes it from under them.

A member is given atoms when it is made, and has them as long as it lives. One that was released
lives until the hot loop is done with its present kernel; whoever needs its room waits for that.
"""

import time
import weakref
from collections.abc import Callable, Iterable
from threading import Event
from typing import NamedTuple

from agent.puller import Cancelled
from weights.manifest import AtomLocation

__all__ = ["Leases", "n_bytes_of"]

# A slow board may be inside a whole stage of many rows; whoever lives longer was not released.
RELEASE_S = 30.0
POLL_S = 0.02


class _Lease(NamedTuple):
    user: weakref.ref[object]
    atoms: tuple[AtomLocation, ...]
    kv_bytes: int


class Leases:
    """Atoms of one model and KV bytes that are in use; for the bulk thread alone."""

    def __init__(self) -> None:
        self._leases: list[_Lease] = []

    def add(self, user: object, atoms: Iterable[AtomLocation], kv_bytes: int = 0) -> None:
        """Note what `user` needs as long as it lives; only a weak reference to it is kept."""
        self._leases.append(_Lease(weakref.ref(user), tuple(atoms), kv_bytes))

    @property
    def atoms(self) -> dict[int, AtomLocation]:
        """The atoms that are in use, by their offset in bytes."""
        return {atom.offset_bytes: atom for lease in self._living() for atom in lease.atoms}

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV pools that are in use."""
        return sum(lease.kv_bytes for lease in self._living())

    @property
    def held_bytes(self) -> int:
        """Bytes of atoms and KV pools that are in use."""
        return n_bytes_of(self.atoms.values()) + self.kv_bytes

    @property
    def pool_bytes(self) -> int:
        """As `kv_bytes`, but from any thread."""
        leases = list(self._leases)
        return sum(lease.kv_bytes for lease in leases if lease.user() is not None)

    def wait(
        self, enough: Callable[[], bool], cancelled: Event, most_s: float = float("inf")
    ) -> bool:
        """Wait until `enough` says so while members go; False if it does not in time.

        Args:
            enough: looked at several times.
            cancelled: ends it.
            most_s: how long to wait at most, if not as long as a released member may live.

        Raises:
            Cancelled: nobody wants it any more.
        """
        deadline_s = time.monotonic() + min(most_s, RELEASE_S)
        while True:
            # Looked at before: the last one may go while `enough` counts.
            may_change = bool(self._living()) and time.monotonic() < deadline_s
            if enough():
                return True
            if not may_change:
                return False
            if cancelled.wait(POLL_S):
                raise Cancelled("the assignment was withdrawn")

    def _living(self) -> list[_Lease]:
        self._leases = [lease for lease in self._leases if lease.user() is not None]
        return self._leases


def n_bytes_of(atoms: Iterable[AtomLocation]) -> int:
    """Return how many bytes some atoms have together."""
    return sum(atom.n_bytes for atom in atoms)
