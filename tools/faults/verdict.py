"""What became of the streams and of the processes: counts, and what is wrong with them. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from tools.faults.schedule import Aim, Fault, Kind

__all__ = ["Ending", "Holding", "Stream", "Strike", "Verdict", "grown", "judge", "summary"]

# What a process at rest may hold more than before: ZeroMQ opens some descriptors late.
SPARE_FDS = 4
SPARE_BYTES = 32 << 20
SPARE_SHARE = 0.25


class Ending(StrEnum):
    """How a stream ended, as its reader saw it."""

    FINISHED = "finished"
    FAILED = "failed"  # the coordinator said why
    SILENT = "silent"  # the connection ended without a word, or nothing came for too long


class Verdict(StrEnum):
    """What that is worth; the names are those of the report."""

    FINISHED = "streams_finished"
    FAILED_CLEANLY = "streams_failed_cleanly"
    FAILED_THOUGH = "failed_though_survivors_sufficed"
    MISMATCHED = "mismatched"
    LOST = "lost"


class Stream(NamedTuple):
    """One text that was asked for.

    Attributes:
        tokens: what its reader got one by one.
        result: all tokens, as the last message says; None without one.
        wanted: what an undisturbed run wrote.
        sufficed: whether the boards left could hold the model all the time.
    """

    number: int
    ending: Ending
    tokens: tuple[int, ...]
    result: tuple[int, ...] | None
    wanted: tuple[int, ...]
    sufficed: bool = True
    reason: str = ""


class Strike(NamedTuple):
    """One fault that happened.

    Attributes:
        board: which one; of a join, the one that came.
        streams: numbers of those that were being written, the prompt or the text.
        in_prefill: one of them had no token yet.
        in_move: weights or heads were on their way, or a new plan was being loaded for it.
        sufficed: the boards that are left could hold the model.
    """

    fault: Fault
    board: str
    streams: tuple[int, ...]
    in_prefill: bool
    in_move: bool
    sufficed: bool

    @property
    def counts(self) -> bool:
        """Whether it struck a running stream while the survivors could hold the model."""
        return bool(self.streams) and self.sufficed


class Holding(NamedTuple):
    """What a process holds at rest.

    Attributes:
        memory_bytes: anonymous resident memory.
        n_children: processes that it has started and that still run.
    """

    n_fds: int
    n_threads: int
    memory_bytes: int
    n_children: int = 0

    def least(self, other: "Holding") -> "Holding":
        """Return the lesser figure of each."""
        return Holding(*map(min, self, other))


def judge(stream: Stream) -> Verdict:
    """Return what a stream's ending is worth; wrong tokens outweigh everything."""
    n = len(stream.tokens)
    if stream.tokens != stream.wanted[:n]:
        return Verdict.MISMATCHED
    match stream.ending:
        case Ending.SILENT:
            return Verdict.LOST
        case Ending.FAILED:
            return Verdict.FAILED_THOUGH if stream.sufficed else Verdict.FAILED_CLEANLY
        case Ending.FINISHED:
            same = stream.tokens == stream.wanted == stream.result
            return Verdict.FINISHED if same else Verdict.MISMATCHED


def grown(before: Mapping[str, Holding], after: Mapping[str, Holding]) -> list[str]:
    """Return what each process holds too much of, in words; [] = nothing.

    Args:
        before: by process, at rest.
        after: the same ones, or those in their place; others are not compared.
    """
    found = []
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        if new.n_fds > old.n_fds + SPARE_FDS:
            found.append(f"{name}: {new.n_fds} open files, {old.n_fds} before")
        if new.n_threads > old.n_threads:
            found.append(f"{name}: {new.n_threads} threads, {old.n_threads} before")
        if new.n_children > old.n_children:
            found.append(f"{name}: {new.n_children} child processes, {old.n_children} before")
        if new.memory_bytes > old.memory_bytes * (1.0 + SPARE_SHARE) + SPARE_BYTES:
            mib = [round(holding.memory_bytes / 2**20) for holding in (new, old)]
            found.append(f"{name}: {mib[0]} MiB of memory, {mib[1]} MiB before")
    return found


def summary(
    strikes: Sequence[Strike], streams: Iterable[Stream], leaks: Sequence[str]
) -> dict[str, object]:
    """Return the report's counts.

    Faults are counted by kind, and by what they struck; all but `faults` itself count only those
    that struck a running stream while the survivors could hold the model.
    """
    verdicts = Counter(judge(stream) for stream in streams)
    counted = [strike for strike in strikes if strike.counts]
    kinds = Counter(strike.fault.kind for strike in counted)
    return {
        "faults": len(strikes),
        "faults_on_running_streams": len(counted),
        **{verdict.value: verdicts[verdict] for verdict in Verdict},
        "leaked": len(leaks),
        "by_kind": {kind.value: kinds[kind] for kind in Kind},
        "in_prefill": sum(strike.in_prefill for strike in counted),
        "in_move": sum(strike.in_move for strike in counted),
        "in_prefill_or_move": sum(strike.in_prefill or strike.in_move for strike in counted),
        "aimed": {aim.value: sum(s.fault.aim is aim for s in strikes) for aim in Aim},
        "not_sufficing": sum(not strike.sufficed for strike in strikes),
    }
