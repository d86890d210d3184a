"""What a migration knows of one text, and how far each target has come with it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.ids import AgentName, KvId
from agent.migration_messages import NO_FLOOR, Have

__all__ = ["Copy", "Text", "laggard", "owing", "progress_of"]


@dataclass
class Copy:
    """One text at one target.

    Attributes:
        asked: rows that were asked for last, in `asked_version`; version -1 = nothing was.
        have: rows that are there, in `version`.
        floor: rows from here on became void since the target last told of a version.
        sent_s: when it was asked last.
    """

    asked: int = 0
    asked_version: int = -1
    urgent: bool = False
    version: int = -1
    have: int = 0
    gone: bool = False
    floor: int = NO_FLOOR
    sent_s: float = float("-inf")


@dataclass
class Text:
    """One open text.

    Attributes:
        n_tokens: rows written on all holders, as of its last boundary.
        version: counts truncations and the end.
        moved: whether it is in the new epoch.
        held_s: when it was held, None = it is not.
        not_before_s: when it may be held again.
    """

    kv_id: KvId
    n_tokens: int
    reserve_tokens: int
    fork_of: KvId | None = None
    fork_version: int = 0
    fork_tokens: int = 0
    version: int = 0
    gone: bool = False
    at_rest: bool = True
    prefill: bool = False
    moved: bool = False
    held_s: float | None = None
    not_before_s: float = float("-inf")
    copies: dict[AgentName, Copy] = field(default_factory=dict)

    def cut(self, n_tokens: int) -> None:
        """Begin a version in which rows from n_tokens on are void."""
        self.version += 1
        self.n_tokens = min(self.n_tokens, n_tokens)
        for copy in self.copies.values():
            copy.floor = min(copy.floor, n_tokens)

    def end(self) -> None:
        """Begin the last version."""
        self.version += 1
        self.gone, self.n_tokens = True, 0

    def on_have(self, name: AgentName, have: Have) -> bool:
        """Take in how far a target is; return whether that is news."""
        copy = self.copies.get(name)
        if copy is None or have.version != self.version or have.gone != self.gone:
            return False
        news = copy.version != self.version or have.n_tokens > copy.have or have.gone > copy.gone
        copy.have = have.n_tokens if copy.version != self.version else max(copy.have, have.n_tokens)
        copy.version, copy.gone, copy.floor = self.version, have.gone, NO_FLOOR
        return news

    def lag_tokens(self) -> int:
        """Return how many rows the slowest target lacks; all of them if it has not answered."""
        return max(
            (
                self.n_tokens - (c.have if c.version == self.version else 0)
                for c in self.copies.values()
            ),
            default=0,
        )

    def rows_at(self, name: AgentName) -> int:
        """Return how many rows of this version a target is known to have."""
        copy = self.copies.get(name)
        return copy.have if copy is not None and copy.version == self.version else 0

    @property
    def answered(self) -> bool:
        """Whether every target has told of this version."""
        return all(c.version == self.version for c in self.copies.values())

    @property
    def is_behind(self) -> bool:
        """Whether there is something to be copied, or an answer to be waited for."""
        return not self.settled and not (self.answered and self.lag_tokens() <= 0)

    @property
    def settled(self) -> bool:
        """Whether nothing is to be copied any more: it has moved, or is gone everywhere."""
        return self.moved or (self.gone and self.answered)


def progress_of(texts: Iterable[Text]) -> tuple[int, int]:
    """Return the rows that the slowest targets have and rows to have, over all texts."""
    here = [text for text in texts if not text.gone]
    wanted = sum(text.n_tokens for text in here)
    return wanted - sum(0 if text.moved else text.lag_tokens() for text in here), wanted


def laggard(texts: Iterable[Text]) -> AgentName | None:
    """Return a target that lacks rows, or has not answered."""
    for text in texts:
        for name, copy in sorted(text.copies.items()):
            if copy.version != text.version or copy.have < text.n_tokens:
                return name
    return None


def owing(texts: Iterable[Text]) -> set[AgentName]:
    """Return the targets that may still hold rows that are void, or texts that are closed."""
    return {
        name
        for text in texts
        for name, copy in text.copies.items()
        if text.version and copy.asked_version >= 0 and copy.version != text.version
    }
