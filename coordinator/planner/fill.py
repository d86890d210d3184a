"""Fill given agents with atoms: how many groups, columns and vocab atoms each one holds. Pure.

Without scarce memory each class is shared out by speed alone, which is optimal. Where memory is
scarce the classes compete for it; then several exact partial fills are tried (one pattern for
all layers, or remainders that differ by layer; vocabulary last, or first) and the one with the
shortest predicted time is taken.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coordinator.planner.balance import balance, share_two
from coordinator.planner.cost import AtomSizes, Counts
from kernels.layout import Geometry

__all__ = ["Fill", "Shares"]

Floats = npt.NDArray[np.float64]


@dataclass
class Shares:
    """Atoms of each member, groups and columns summed over all layers."""

    groups: list[int]
    columns: list[int]
    vocab: list[int]

    def n_atoms(self, member: int) -> int:
        """Return how many atoms one member holds."""
        return self.groups[member] + self.columns[member] + self.vocab[member]


class Fill:
    """Fills one set of agents, all in one stage.

    Args:
        geometry: the model's shapes.
        sizes: bytes of its atoms.
        bytes_per_s: how fast each agent reads, (n,).
        memory_bytes: the budget of each agent.
    """

    def __init__(
        self,
        geometry: Geometry,
        sizes: AtomSizes,
        bytes_per_s: Floats,
        memory_bytes: Sequence[int],
    ) -> None:
        self._n_layers = geometry.n_layers
        self._n_groups = geometry.n_kv_heads
        self._n_columns = geometry.n_column_atoms
        self._n_vocab = geometry.n_vocab_atoms
        self._sizes = sizes
        self._group_bytes = sizes.group + sizes.group_pool
        # Lists of Python's own numbers: loops over NumPy's take three times as long.
        self._group_s = (sizes.group_read / bytes_per_s).tolist()
        self._column_s = (sizes.column / bytes_per_s).tolist()
        self._vocab_s = (sizes.vocab / bytes_per_s).tolist()
        fixed = geometry.n_layers * sizes.layer_norms
        # A member that cannot even hold the norms holds nothing.
        self._room = [max(0, m - fixed) for m in memory_bytes]

    def can_hold_one(self, member: int) -> bool:
        """Return whether a member has room for at least one atom of some class."""
        vocab = self._sizes.vocab + self._sizes.final_norm
        return self._room[member] >= min(self._group_bytes, self._sizes.column, vocab)

    def best(
        self, time_s: Callable[[Counts], float], exact: bool = True, most: int | None = None
    ) -> Shares | None:
        """Return the fill with the shortest time, or None if the atoms do not fit.

        Args:
            time_s: predicts the time of a token.
            exact: weigh groups against columns exactly where memory is scarce; else in a
                hundredth of the time, mostly within a few percent.
            most: so many fills are compared where memory is scarce; None = all.
        """
        if sum(self._room) < self._need_bytes():
            return None
        by_speed = self._by_speed()
        if by_speed is not None:
            return by_speed
        tight = list(itertools.islice(self._tight(exact), most))
        if len(tight) == 1:
            return tight[0]
        if tight:
            return min(tight, key=lambda shares: time_s(self.counts(shares)))
        packed = self.packed()
        return packed if self.missing_bytes(packed) == 0 else None

    def counts(self, shares: Shares) -> Counts:
        """Return the atoms by layer and rank; each member's lie evenly over the layers."""
        n = len(self._room)
        groups = _deal(shares.groups, self._n_layers)
        columns = _deal(shares.columns, self._n_layers)
        return Counts(groups, columns, np.array(shares.vocab), ((0, self._n_layers, 0, n),))

    def left_bytes(self, shares: Shares, member: int) -> int:
        """Return a member's memory that is left over; negative if it holds too much."""
        left = self._room[member] - shares.groups[member] * self._group_bytes
        return (
            left - shares.columns[member] * self._sizes.column - self._vocab_bytes(shares, member)
        )

    def spread(self, shares: Shares) -> None:
        """Give every member that holds nothing an atom of another, in place, where it has room.

        A column atom of every layer by choice, else one atom of any class.
        """
        for member in range(len(self._room)):
            if shares.n_atoms(member) == 0 and not self._take_columns(shares, member):
                self._take_one(shares, member)

    def packed(self) -> Shares:
        """Return the most that fits, whatever the time: the last resort, and what is lacking."""
        by_room = sorted(range(len(self._room)), key=lambda j: self._room[j])
        members = [*range(len(self._room))], by_room, by_room[::-1]
        classes = ("groups", "columns", "vocab"), ("groups", "vocab", "columns")
        packings = (self._pack(m, c) for m, c in itertools.product(members, classes))
        return min(packings, key=self.missing_bytes)

    def _pack(self, members: list[int], classes: tuple[str, ...]) -> Shares:
        """Fill member after member with class after class."""
        sizes, n = self._sizes, len(self._room)
        of_class = {
            "groups": (self._n_layers * self._n_groups, self._group_bytes, 0),
            "columns": (self._n_layers * self._n_columns, sizes.column, 0),
            "vocab": (self._n_vocab, sizes.vocab, sizes.final_norm),
        }
        room = list(self._room)
        shares = Shares([0] * n, [0] * n, [0] * n)
        for name in classes:
            left, n_bytes, fixed = of_class[name]
            for j in members:
                count = min(left, max(0, room[j] - fixed) // n_bytes)
                getattr(shares, name)[j] = count
                room[j] -= count * n_bytes + (fixed if count else 0)
                left -= count
        return shares

    def _need_bytes(self) -> int:
        """Return the bytes of all atoms with their KV."""
        return (
            self._n_layers * self._n_groups * self._group_bytes
            + self._n_layers * self._n_columns * self._sizes.column
            + self._n_vocab * self._sizes.vocab
        )

    def missing_bytes(self, packed: Shares) -> int:
        """Return the bytes of the atoms that found no place."""
        placed = sum(packed.groups) * self._group_bytes
        placed += sum(packed.columns) * self._sizes.column
        return self._need_bytes() - placed - sum(packed.vocab) * self._sizes.vocab

    def _by_speed(self) -> Shares | None:
        """Return the best fill as if memory were plenty, or None if it is not."""
        n, n_layers = len(self._room), self._n_layers
        groups = balance(self._n_groups, self._group_s, [self._n_groups] * n)
        assert groups is not None
        group_bytes = n_layers * self._group_bytes
        if any(g * group_bytes > room for g, room in zip(groups, self._room, strict=True)):
            return None
        columns = balance(self._n_columns, self._column_s, [self._n_columns] * n, groups)
        assert columns is not None
        # At equal times, first those who hold least.
        held = [g + c for g, c in zip(groups, columns, strict=True)]
        vocab = balance(self._n_vocab, self._vocab_s, [self._n_vocab] * n, held)
        assert vocab is not None
        shares = Shares([n_layers * g for g in groups], [n_layers * c for c in columns], vocab)
        return shares if all(self.left_bytes(shares, j) >= 0 for j in range(n)) else None

    def _tight(self, exact: bool) -> Iterator[Shares]:
        """Yield fills that respect scarce memory."""
        n = len(self._room)
        for vocab_first in (False, True):
            room, vocab = self._room, None
            if vocab_first:
                vocab = self._share_vocab(room)
                if vocab is None:
                    return
                room = self._less_vocab(room, vocab)
            for groups in self._share_groups(room, exact):
                rest = [r - g * self._group_bytes for r, g in zip(room, groups, strict=True)]
                for columns in self._share_columns(rest):
                    size = self._sizes.column
                    last = [r - c * size for r, c in zip(rest, columns, strict=True)]
                    rows = vocab or self._share_vocab(last)
                    if rows is not None:
                        shares = Shares(groups, columns, rows)
                        assert all(self.left_bytes(shares, j) >= 0 for j in range(n))
                        yield shares

    def _share_groups(self, room: list[int], exact: bool) -> Iterator[list[int]]:
        """Yield groups of each member: by single layers, and one pattern for all if exact."""
        n_layers = self._n_layers
        caps = [r // self._group_bytes for r in room]
        groups = balance(n_layers * self._n_groups, self._group_s, caps)
        if groups is not None:
            yield groups
        pattern = exact and share_two(
            (self._n_groups, self._n_columns),
            (self._group_s, self._column_s),
            (n_layers * self._group_bytes, n_layers * self._sizes.column),
            room,
        )
        if pattern:
            yield [n_layers * g for g in pattern]

    def _share_columns(self, room: list[int]) -> Iterator[list[int]]:
        """Yield columns of each member: one pattern for all layers, and by single layers."""
        caps = [max(0, r) // self._sizes.column for r in room]
        pattern = balance(self._n_columns, self._column_s, [c // self._n_layers for c in caps])
        if pattern is not None:
            yield [self._n_layers * c for c in pattern]
        columns = balance(self._n_layers * self._n_columns, self._column_s, caps)
        if columns is not None:
            yield columns

    def _share_vocab(self, room: list[int]) -> list[int] | None:
        caps = [max(0, r - self._sizes.final_norm) // self._sizes.vocab for r in room]
        return balance(self._n_vocab, self._vocab_s, caps)

    def _less_vocab(self, room: list[int], vocab: list[int]) -> list[int]:
        sizes = self._sizes
        return [
            r - v * sizes.vocab - (sizes.final_norm if v else 0)
            for r, v in zip(room, vocab, strict=True)
        ]

    def _vocab_bytes(self, shares: Shares, member: int) -> int:
        count = shares.vocab[member]
        return count * self._sizes.vocab + (self._sizes.final_norm if count else 0)

    def _take_columns(self, shares: Shares, member: int) -> bool:
        """Move one column atom of every layer to a member, if it has room and another has two."""
        donor = max(range(len(self._room)), key=lambda j: shares.columns[j])
        n_layers = self._n_layers
        fits = n_layers * self._sizes.column <= self._room[member]
        if not fits or shares.columns[donor] < 2 * n_layers:
            return False
        shares.columns[donor] -= n_layers
        shares.columns[member] += n_layers
        return True

    def _take_one(self, shares: Shares, member: int) -> None:
        """Move one atom of any class to a member from one that keeps at least one."""
        vocab_bytes = self._sizes.vocab + self._sizes.final_norm
        for held, n_bytes in (
            (shares.vocab, vocab_bytes),
            (shares.columns, self._sizes.column),
            (shares.groups, self._group_bytes),
        ):
            donors = [j for j in range(len(held)) if held[j] and shares.n_atoms(j) > 1]
            if donors and n_bytes <= self._room[member]:
                held[max(donors, key=lambda j: held[j])] -= 1
                held[member] += 1
                return


def _deal(totals: list[int], n_layers: int) -> npt.NDArray[np.int64]:
    """Deal atoms to layers like cards, (n_layers, n): equally many each, and evenly by member.

    The total is a multiple of n_layers; each member's counts differ by at most 1 over the layers.
    """
    each, rest = np.divmod(np.array(totals, np.int64), n_layers)
    if not rest.any():
        return np.repeat(each[None], n_layers, axis=0)
    # The card of each member's first remainder: where the member before it stopped.
    first = np.cumsum(rest) - rest
    layers = np.arange(n_layers)[:, None]
    counts: npt.NDArray[np.int64] = each + ((layers - first) % n_layers < rest)
    return counts
