"""The world of changing load: boards, model, link, and what happens to the boards. Pure.

Boards slow down to a part of their rate and recover, each by itself, after exponential times; in
the same way they may be lost and come back, and others may take most of their memory. Each kind
has random numbers of its own: a trace with losses has the slowdowns of the one without.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.ids import AgentName
from agent.speedometer import LOOK_S
from coordinator.control import HEARTBEAT_S
from coordinator.planner.cost import Link, Offer, PlanRequest
from coordinator.planner.replan import Conditions
from kernels.layout import Geometry, WeightFormat

__all__ = ["TINYLLAMA", "BoardState", "LoadSetting", "Sample", "samples", "trace"]

TINYLLAMA = Geometry(2048, 22, 32, 4, 64, 5632, 32000, WeightFormat.Q8, 1e-5)
GBIT = Link(hop_s=150e-6, bytes_per_s=117e6)


@dataclass(frozen=True)
class LoadSetting:
    """What is simulated.

    Attributes:
        bytes_per_s: rate of each board when nothing else runs on it.
        memory_bytes: memory of each board.
        dwell_s: mean time in each of the two states.
        slow_share: rate in the slow state, as part of the full one.
        lost_every_s: mean time until a board is lost; 0 = never.
        away_s: mean time that it is away.
        squeezed_every_s: mean time until others take a board's memory; 0 = never.
        squeezed_s: mean time until they give it back.
        squeezed_share: part of the memory that is left meanwhile.
        mirrored: the KV of a lost board has a copy; else it is computed again.
        noise: standard deviation of a measured rate, relative.
        sample_s: how often a board looks at its own rate.
        beat_s: how often it tells it; a change is told at once.
        notice_s: from the telling until the coordinator acts on it.
        duration_s: length of the run.
        cached_tokens: tokens whose KV moves with head groups.
        link: 1 Gbit Ethernet.
        geometry: the model.
        horizon_share, back_share: see `Conditions`.
    """

    bytes_per_s: tuple[float, ...] = (4e9, 4e9, 4e9, 4e9)
    memory_bytes: int = 4 << 30
    dwell_s: float = 60.0
    slow_share: float = 0.35
    lost_every_s: float = 0.0
    away_s: float = 60.0
    squeezed_every_s: float = 0.0
    squeezed_s: float = 60.0
    squeezed_share: float = 0.05
    mirrored: bool = True
    noise: float = 0.07
    sample_s: float = LOOK_S
    beat_s: float = HEARTBEAT_S
    notice_s: float = 0.0
    duration_s: float = 600.0
    cached_tokens: int = 1000
    link: Link = GBIT
    geometry: Geometry = TINYLLAMA
    horizon_share: float = Conditions.horizon_share
    back_share: float = Conditions.back_share

    @property
    def request(self) -> PlanRequest:
        """What plans must serve: one context of 2048 tokens."""
        return PlanRequest(2048, 2048, n_contexts=1, typical_tokens=self.cached_tokens)

    @property
    def names(self) -> list[AgentName]:
        """Names of the boards."""
        return [AgentName(f"board-{i}") for i in range(len(self.bytes_per_s))]

    @property
    def calm(self) -> "BoardState":
        """All boards here, at full rate, with all of their memory."""
        n = len(self.bytes_per_s)
        return BoardState(self.bytes_per_s, (self.memory_bytes,) * n)

    def offers(self, state: "BoardState") -> list[Offer]:
        """Return what the boards that are here offer."""
        rows = zip(self.names, state.memory_bytes, state.rates, strict=True)
        return [Offer(name, memory, rate) for name, memory, rate in rows if rate > 0]


class BoardState(NamedTuple):
    """Rate of each board, 0 = away, and its memory."""

    rates: tuple[float, ...]
    memory_bytes: tuple[int, ...]


class Sample(NamedTuple):
    """One look at the boards: measured rates (0 = away), and what truly was since the last."""

    now_s: float
    measured: BoardState
    passed: list[tuple[float, float, BoardState]]


def trace(setting: LoadSetting, seed: int) -> list[tuple[float, BoardState]]:
    """Return (time, true state of all boards) at the start and at every change, rising."""
    key = f"{seed} {setting.dwell_s}"
    rng = random.Random(f"load {key}")
    n = len(setting.bytes_per_s)
    slow = [rng.random() < 0.5 for _ in range(n)]
    away, squeezed = [False] * n, [False] * n
    dwell_s = setting.dwell_s
    changes = [(at_s, board, slow) for at_s, board in _flips(rng, setting, dwell_s, dwell_s)]
    for name, flags, here_s, gone_s in (
        ("lost", away, setting.lost_every_s, setting.away_s),
        ("squeezed", squeezed, setting.squeezed_every_s, setting.squeezed_s),
    ):
        if here_s > 0:
            flips = _flips(random.Random(f"{name} {key}"), setting, here_s, gone_s)
            changes += [(at_s, board, flags) for at_s, board in flips]
    states = [(0.0, _state(setting, slow, away, squeezed))]
    for at_s, board, flags in sorted(changes, key=lambda c: c[:2]):
        flags[board] = not flags[board]
        states.append((at_s, _state(setting, slow, away, squeezed)))
    return states


def _flips(
    rng: random.Random, setting: LoadSetting, first_s: float, second_s: float
) -> Iterator[tuple[float, int]]:
    """Yield times at which boards go from one state to the other and back, board by board."""
    for board in range(len(setting.bytes_per_s)):
        means_s = (first_s, second_s)
        at_s, k = rng.expovariate(1 / means_s[0]), 1
        while at_s < setting.duration_s:
            yield at_s, board
            at_s += rng.expovariate(1 / means_s[k % 2])
            k += 1


def _state(
    setting: LoadSetting, slow: Sequence[bool], away: Sequence[bool], squeezed: Sequence[bool]
) -> BoardState:
    rates = [
        0.0 if gone else rate * (setting.slow_share if s else 1.0)
        for rate, s, gone in zip(setting.bytes_per_s, slow, away, strict=True)
    ]
    memory = setting.memory_bytes
    left = [int(memory * setting.squeezed_share) if s else memory for s in squeezed]
    return BoardState(tuple(rates), tuple(left))


def samples(setting: LoadSetting, seed: int) -> Iterator[Sample]:
    """Yield what sensors say, time after time, and what was the case in between."""
    rng = random.Random(f"noise {seed} {setting.dwell_s}")
    states = trace(setting, seed)
    position, before_s = 0, 0.0
    for k in range(1, round(setting.duration_s / setting.sample_s) + 1):
        now_s, passed, from_s = k * setting.sample_s, [], before_s
        while position + 1 < len(states) and states[position + 1][0] <= now_s:
            passed.append((from_s, states[position + 1][0], states[position][1]))
            from_s = states[position + 1][0]
            position += 1
        state = states[position][1]
        passed.append((from_s, now_s, state))
        seen = tuple(r * max(0.2, rng.gauss(1.0, setting.noise)) for r in state.rates)
        yield Sample(now_s, BoardState(seen, state.memory_bytes), passed)
        before_s = now_s
