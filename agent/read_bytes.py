"""How many bytes the kernels of one member read: what its speed is measured by.

Weights are read once a call, whatever the number of rows; keys and values once for each context.
Counted as the planner counts them (`coordinator.planner.cost`). Pure.
"""

import numpy as np
import numpy.typing as npt

from agent.member import Member, kv_shape
from agent.share import count_atoms
from kernels.paging import PAGE_TOKENS

__all__ = ["ReadBytes"]

I64Array = npt.NDArray[np.int64]


class ReadBytes:
    """What each call of a member's kernels reads.

    Args:
        member: whose atoms.

    Attributes:
        stage_weights_bytes: bytes of the weights of all layers.
        stage_page_bytes: bytes of a page of keys and values in all layers.
        vocab: bytes of the rows of the vocabulary.
    """

    def __init__(self, member: Member) -> None:
        layers, g = member.assignment.layers, member.geometry
        self._groups = np.array([count_atoms(s.head_groups) for s in layers], np.int64)
        columns = np.array([count_atoms(s.columns) for s in layers], np.int64)
        self._n_layers = len(layers)
        # Attention of each layer, then MLP of each layer.
        groups_bytes, columns_bytes = self._groups * g.head_group_bytes, columns * g.column_bytes
        self._weights = np.concatenate([groups_bytes, columns_bytes])
        self._page_bytes = kv_shape(member.assignment, g).page_bytes
        self._n_groups = int(self._groups.sum())
        self._none = np.zeros(2 * self._n_layers, np.int64)
        self.stage_weights_bytes = int(self._weights.sum())
        self.stage_page_bytes = self._n_groups * self._page_bytes
        self.vocab = count_atoms(member.assignment.vocab) * g.vocab_bytes

    def of_rows(self, rows: npt.NDArray[np.uint32]) -> I64Array:
        """Return the bytes of each layer's attention, then of each layer's MLP, (2 L,) int64.

        Args:
            rows: (n, 2) uint32, context and position.
        """
        found = self._weights.copy()
        found[: self._n_layers] += self._groups * self._group_bytes(rows)
        return found

    def of_stage(self, rows: npt.NDArray[np.uint32]) -> int:
        """Return the sum of `of_rows`."""
        return self.stage_weights_bytes + self._n_groups * self._group_bytes(rows)

    def _group_bytes(self, rows: npt.NDArray[np.uint32]) -> int:
        """Return the bytes of keys and values that one head group reads for the rows."""
        if len(rows) == 1:
            n_tokens = int(rows[0, 1]) + 1
        else:
            kv_ids = rows[:, 0]
            n_tokens = sum(int(rows[kv_ids == i, 1].max()) + 1 for i in np.unique(kv_ids))
        return n_tokens * self._page_bytes // PAGE_TOKENS

    @property
    def nothing(self) -> I64Array:
        """Zeros in the form of `of_rows`."""
        return self._none
