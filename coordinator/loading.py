"""Who is late in getting ready for a plan. Pure.

Loading may take as long as it makes progress: weights come over slow links too. But what an agent
says of its progress is only a claim. It counts where it rises, up to the bytes of the agent's part,
and the whole may take no longer than those of all members at a rate that no useful link is below.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agent.ids import AgentName

__all__ = ["MIN_BYTES_PER_S", "Late", "LoadWatch"]

# 2 Mbit/s, of all members together: they may share the coordinator's link.
MIN_BYTES_PER_S = 250_000.0


class Late(NamedTuple):
    """Agents that have had their time, and for people in which way."""

    names: tuple[AgentName, ...]
    why: str


class LoadWatch:
    """Watches the members of one plan from its assignment on.

    Args:
        n_bytes: the weights of each member's part.
        stall_s: how long a member may make no progress.
        now_s: monotonic time of the assignment.
    """

    def __init__(self, n_bytes: Mapping[AgentName, int], stall_s: float, now_s: float) -> None:
        self._n_bytes = dict(n_bytes)
        self._stall_s = stall_s
        # Before the first byte and after the last one, while kernels compile, nothing may rise.
        self._most_s = 2 * stall_s + sum(n_bytes.values()) / MIN_BYTES_PER_S
        self._end_s = now_s + self._most_s
        self._done_bytes = dict.fromkeys(n_bytes, 0)
        self._risen_s = dict.fromkeys(n_bytes, now_s)

    def note(self, name: AgentName, done_bytes: int, now_s: float) -> None:
        """Take in how many bytes a member says it has."""
        done_bytes = min(done_bytes, self._n_bytes[name])
        if done_bytes > self._done_bytes[name]:
            self._done_bytes[name], self._risen_s[name] = done_bytes, now_s

    def late(self, waiting: Sequence[AgentName], now_s: float) -> Late | None:
        """Return who of those that are not ready has had its time; None if nobody."""
        if now_s >= self._end_s:
            n_bytes = sum(self._n_bytes.values())
            return Late(
                tuple(waiting),
                f"not ready after {self._most_s:.0f} s, though the plan's {n_bytes} bytes of "
                f"weights need less at {MIN_BYTES_PER_S:.0f} bytes/s; look at links and logs",
            )
        stalled = tuple(n for n in waiting if now_s >= self._risen_s[n] + self._stall_s)
        if not stalled:
            return None
        return Late(
            stalled, f"not ready and made no progress for {self._stall_s:g} s; look at their logs"
        )

    def due_s(self, waiting: Sequence[AgentName]) -> float:
        """Return when somebody of `waiting` will be late, if nothing changes."""
        return min([self._end_s, *(self._risen_s[name] + self._stall_s for name in waiting)])
