"""How large a member's partial sums can be, by the weights that it holds."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from agent.frames import Phase
from agent.ids import Rank
from agent.share import indices
from coordinator.plan import Plan
from weights.bounds import attention_bound, mlp_bound
from weights.directory import ModelDirectory
from weights.sections import AtomKind

__all__ = ["part_bound"]


def part_bound(
    directory: ModelDirectory, plan: Plan, rank: Rank, phase: Phase, layer: int
) -> float:
    """Return the largest magnitude of a partial sum that a member's weights allow.

    Raises:
        ModelError: the member's atoms are damaged.
    """
    share = next(s for s in plan.members[rank].layers if s.layer == layer)
    geometry, norms = directory.geometry, _blobs(directory, "layer_norms", layer, [0])[0]
    if phase is Phase.ATTENTION:
        groups = _blobs(directory, "head_group", layer, indices(share.head_groups))
        return attention_bound(geometry, norms, groups)
    columns = _blobs(directory, "column", layer, indices(share.columns))
    return mlp_bound(geometry, norms, columns)


def _blobs(
    directory: ModelDirectory, kind: AtomKind, layer: int, atoms: Iterable[int]
) -> list[npt.NDArray[np.uint8]]:
    """Return some atoms of a layer, sound."""
    found = [directory.manifest.atom(kind, layer, index) for index in atoms]
    directory.verify_atoms(found)
    return [directory.atom_bytes(atom) for atom in found]
