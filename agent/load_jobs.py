"""What a loader is asked to do, one after the other."""

import threading
from dataclasses import dataclass
from typing import NamedTuple

from agent.events import LoadKey
from agent.kv_shape import KvShape
from agent.migration_messages import Group
from agent.puller import BulkSource
from agent.share import Assignment

__all__ = ["LoadJob", "ProbeJob", "Reservation"]


@dataclass(frozen=True)
class LoadJob:
    """One assignment to carry out, and where to pull from."""

    assignment: Assignment
    source: BulkSource
    cancelled: threading.Event

    @property
    def key(self) -> LoadKey:
        """The assignment's name in events."""
        return LoadKey(self.assignment.run_id, self.assignment.epoch)


@dataclass(frozen=True)
class Reservation:
    """A pool to reserve for a mirror."""

    key: LoadKey
    shape: KvShape
    groups: tuple[Group, ...]
    cancelled: threading.Event


class ProbeJob(NamedTuple):
    """A link to measure."""

    source: BulkSource
    n_bytes: int
