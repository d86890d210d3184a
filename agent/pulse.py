"""What a heartbeat says of the board: gathered several times a second, in 0.1 ms or so."""

import resource

from agent.emulation import Emulation
from agent.health import Health
from agent.hot import HotLoop
from agent.ids import Epoch
from agent.loader import Loader
from agent.memory import Memory
from agent.messages import LEAST_RATE, MOST_RATE, Heartbeat
from agent.quota import Quota
from agent.resources import reserve_bytes
from agent.speedometer import Speedometer

__all__ = ["Pulse"]


class Pulse:
    """Makes heartbeats; each measures what has happened since the one before.

    Args:
        loader: knows the atoms and the bulk link.
        emulation: the board that this machine plays; None for what it is.
        n_threads: of kernels.
    """

    def __init__(
        self, loader: Loader, emulation: Emulation | None = None, n_threads: int = 1
    ) -> None:
        self._loader = loader
        self._emulation = emulation
        self._health = Health()
        self._memory = Memory()
        self._quota = Quota(n_threads)
        self._n_faults = _major_faults()
        self._speedometer: Speedometer | None = None
        # Made before anything is loaded: as the agent found the board.
        self._reserve_bytes = reserve_bytes(self._memory.look().available_bytes)

    def is_news(self, hot: HotLoop | None) -> bool:
        """Return whether the kernels' speed has changed so that the next heartbeat shall not wait.

        Takes a few microseconds where nothing has run.
        """
        speedometer = self._speedometer_of(hot)
        return speedometer is not None and speedometer.look()

    @property
    def is_running(self) -> bool:
        """Whether kernels ran between the last two times that somebody asked for news."""
        return self._speedometer is not None and self._speedometer.is_running

    def _speedometer_of(self, hot: HotLoop | None) -> Speedometer | None:
        if hot is None:
            self._speedometer = None
        elif self._speedometer is None or self._speedometer.samples is not hot.samples:
            self._speedometer = Speedometer(hot.samples)
        return self._speedometer

    def beat(self, epoch: Epoch, hot: HotLoop | None, round_trip_s: float | None) -> Heartbeat:
        """Return the heartbeat that names `epoch`.

        Args:
            epoch: the newest that is loaded.
            hot: the hot loop, if there is one.
            round_trip_s: of the control link, if known; that of a probe is better.
        """
        n_faults, reading, goodput = _major_faults(), self._health.read(), self._loader.goodput
        speedometer = self._speedometer_of(hot)
        rate = speedometer.read() if speedometer else None
        kv_bytes = hot.kv_bytes if hot else 0
        resident_bytes = self._loader.resident_bytes
        free = self._memory.look()
        available_bytes = free.available_bytes
        if self._emulation is not None:
            self._emulation.look()
            available_bytes = self._emulation.memory_left_bytes(
                available_bytes, resident_bytes + kv_bytes
            )
        unmapped_bytes = self._loader.unmapped_bytes
        # Weights in mapped files are as good as free for whoever does not count them as used.
        budget_bytes, spared_bytes = self._budget(free.unmapped_bytes + unmapped_bytes)
        beat = Heartbeat(
            progress=hot.n_steps if hot else 0,
            memory_available_bytes=available_bytes,
            resident_bytes=resident_bytes,
            kv_free_pages=hot.n_free_pages if hot else 0,
            epoch=epoch,
            round_trip_s=self._loader.round_trip_s or round_trip_s,
            kv_bytes=kv_bytes,
            major_faults=max(0, n_faults - self._n_faults),
            bytes_per_s=_bounded(self._quota.left(rate.bytes_per_s) if rate else None),
            call_s=rate.call_s if rate else None,
            goodput_bytes_per_s=_bounded(goodput.bytes_per_s),
            n_goodput=goodput.n_windows,
            temperature_c=reading.temperature_c,
            throttled=reading.throttled,
            budget_bytes=budget_bytes,
            reserve_bytes=spared_bytes,
            unmapped_bytes=unmapped_bytes,
        )
        self._n_faults = n_faults
        return beat

    def _budget(self, free_bytes: int) -> tuple[int, int]:
        """Return what weights and KV may take altogether, and what shall stay free besides."""
        budget_bytes = max(0, free_bytes - self._reserve_bytes)
        if self._emulation is None:
            return budget_bytes, self._reserve_bytes
        return self._emulation.budget_bytes(budget_bytes, self._reserve_bytes)


def _bounded(bytes_per_s: float | None) -> float | None:
    """Return a rate within what the coordinator takes: one odd number must not cost a heartbeat."""
    return None if bytes_per_s is None else min(max(bytes_per_s, LEAST_RATE), MOST_RATE)


def _major_faults() -> int:
    """Return how many pages of this process had to be read from a disk since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
