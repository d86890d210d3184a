"""How far one text has come to a target: what to ask for next, and what is complete. Pure.

Rows come in blocks of positions, each for all head groups, because a pool grows in all its groups
together; a block is cut into pieces that fit one request. What is copied on the board itself is
cut into pieces of its own, which wait for no link. `have` is the watermark: every row below
it is in the pool, and nothing below it is ever asked for or written again.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.ids import KvId
from agent.migration_messages import Group, Share
from agent.window import CHUNK_BYTES
from kernels.paging import PAGE_TOKENS

__all__ = ["Block", "Piece", "TextProgress"]


@dataclass
class Block:
    """Positions first .. end - 1 of all groups; `left` pieces of it are not in the pool yet."""

    first: int
    end: int
    left: int


class Piece(NamedTuple):
    """One rectangle to ask for: a run of one share's groups times the positions of a block."""

    share: Share
    first_group: int
    n_groups: int
    first: int
    n_tokens: int
    block: Block

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups by name."""
        return self.share.groups[self.first_group : self.first_group + self.n_groups]


@dataclass
class TextProgress:
    """One text at a target.

    Attributes:
        version: the latest heard of; see `Want`.
        wanted: rows to have.
        have: rows that are here.
        urgent: whether the text waits.
        reserve_tokens: tokens for which pages are reserved.
    """

    kv_id: KvId
    version: int
    wanted: int = 0
    have: int = 0
    urgent: bool = False
    reserve_tokens: int = 0
    _blocks: deque[Block] = field(default_factory=deque)
    _remote: deque[Piece] = field(default_factory=deque)
    _local: deque[Piece] = field(default_factory=deque)

    @property
    def complete(self) -> bool:
        """Whether all that is wanted is here."""
        return self.have >= self.wanted

    def next_piece(
        self, shares: Sequence[Share], token_bytes: int, chunk_bytes: int, local: bool
    ) -> Piece | None:
        """Cut off the next piece, if any is left.

        Args:
            shares: all of them.
            token_bytes: keys and values of one position of one head group.
            chunk_bytes: most bytes of a piece that comes over a link, one position at least.
            local: whether to take one that is on the board already.
        """
        if not any(share.groups for share in shares):
            self.have = self.wanted
            return None
        pieces = self._local if local else self._remote
        # What comes over a link is cut late, when it is known how much that may carry.
        while not pieces and not self._remote and any(share.local is local for share in shares):
            if not self._cut(shares, token_bytes, chunk_bytes):
                break
        return pieces.popleft() if pieces else None

    def placed(self, piece: Piece) -> None:
        """Note that a piece is in the pool."""
        piece.block.left -= 1
        while self._blocks and self._blocks[0].left == 0:
            self.have = self._blocks.popleft().end

    def void_from(self, floor: int) -> None:
        """Forget rows from `floor` on, and all that is on its way."""
        self.have = min(self.have, floor)
        self._blocks.clear()
        self._remote.clear()
        self._local.clear()

    def _cut(self, shares: Sequence[Share], token_bytes: int, chunk_bytes: int) -> bool:
        """Begin the next block; return whether there was one."""
        first = self._blocks[-1].end if self._blocks else self.have
        if first >= self.wanted:
            return False
        n_groups = sum(len(share.groups) for share in shares)
        if all(share.local for share in shares):
            chunk_bytes = CHUNK_BYTES
        end = _block_end(first, self.wanted, n_groups, chunk_bytes // token_bytes)
        n_tokens = end - first
        block = Block(first, end, 0)
        for share in shares:
            pieces = self._local if share.local else self._remote
            most_bytes = CHUNK_BYTES if share.local else chunk_bytes
            width = max(1, most_bytes // (token_bytes * n_tokens))
            for group in range(0, len(share.groups), width):
                n = min(width, len(share.groups) - group)
                pieces.append(Piece(share, group, n, first, n_tokens, block))
                block.left += 1
        self._blocks.append(block)
        return True


def _block_end(first: int, wanted: int, n_groups: int, fit_rows: int) -> int:
    """Return where a block ends: several whole pages, one page, or less, as rows fit a request."""
    most = max(fit_rows // n_groups, min(fit_rows, PAGE_TOKENS - first % PAGE_TOKENS), 1)
    end = min(first + most, wanted)
    whole = end // PAGE_TOKENS * PAGE_TOKENS
    return whole if first < whole < end < wanted else end
