"""Temperature and throttling of a board, as far as its kernel exposes them in sysfs.

Where the files are is looked up once; then each reading opens a few of them. Takes the root of
the file system, so that tests can feed it other boards.
"""

from pathlib import Path
from typing import NamedTuple

__all__ = ["Health", "Reading"]

ROOT = Path("/")
# Bits of the Raspberry Pi's firmware that say what is so now: under-voltage, capped, throttled,
# soft limit. The higher ones say what was so since the start.
THROTTLED_NOW = 0xF
# Sensors that are about the processor; others may be those of a disk or a battery.
OURS = ("cpu", "soc", "pkg", "package", "core", "acpitz", "big", "little")
# Of cooling devices that slow the processor down.
SLOWING = ("cpufreq", "processor")
COLDEST_C, HOTTEST_C = -50.0, 200.0
MAX_FILES = 64


class Reading(NamedTuple):
    """How a board is; None = its kernel does not say."""

    temperature_c: float | None = None
    throttled: bool | None = None


class Health:
    """Reads a board's sensors.

    Args:
        root: of the file system.
    """

    def __init__(self, root: Path = ROOT) -> None:
        zones = _listed(root / "sys/class/thermal", "thermal_zone*")
        ours = [zone for zone in zones if any(word in _kind(zone) for word in OURS)]
        self._sensors = [zone / "temp" for zone in ours or zones]
        self._firmware = [
            path / "get_throttled"
            for path in _listed(root / "sys/devices/platform/soc", "*firmware*")
            if (path / "get_throttled").exists()
        ]
        coolers = _listed(root / "sys/class/thermal", "cooling_device*")
        self._coolers = [
            cooler / "cur_state" for cooler in coolers if _kind(cooler).startswith(SLOWING)
        ]

    def read(self) -> Reading:
        """Return how the board is now: its hottest sensor, and whether it is slowed down."""
        return Reading(self._temperature_c(), self._throttled())

    def _temperature_c(self) -> float | None:
        found = [1e-3 * n for path in self._sensors if (n := _number(path, 10)) is not None]
        # Sensors that are broken or asleep say nonsense.
        return max((c for c in found if COLDEST_C <= c <= HOTTEST_C), default=None)

    def _throttled(self) -> bool | None:
        bits = [n for path in self._firmware if (n := _number(path, 16)) is not None]
        states = [n for path in self._coolers if (n := _number(path, 10)) is not None]
        if not bits and not states:
            return None
        return any(n & THROTTLED_NOW for n in bits) or any(n > 0 for n in states)


def _listed(directory: Path, pattern: str) -> list[Path]:
    try:
        return sorted(directory.glob(pattern))[:MAX_FILES]
    except OSError:
        return []


def _kind(directory: Path) -> str:
    """Return what a thermal zone or cooling device says that it is, in small letters."""
    return _text(directory / "type").lower()


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(64).decode(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path, base: int) -> int | None:
    try:
        return int(_text(path), base)
    except ValueError:
        return None
