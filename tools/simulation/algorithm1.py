"""Algorithm 1 of Kafetzis et al. (arXiv 2505.02533), to the letter of what is known of its text.

Steps are those of reference/papers.md 1.5. What it leaves open, and how it is read here:

- score S = max(m/M, b/C, CommFactor) [2]; CommFactor is the sum of seconds of transfer from
  predecessors that are already placed, as in the code: from the heads to proj, from proj to ffn.
  With ffn the largest block and heads the smallest [3] it is 0, but where some blocks stay [6];
- `residual` False: M and C are what the device has (the letter); True: what is left of it;
- feasible is S <= 1 and enough memory left [2]. b/C compares FLOP with FLOP/s, so long sequences
  make every score exceed 1: if no device is feasible for that reason alone, the smallest score
  among those with enough memory is taken, instead of "infeasible";
- a newly computed placement replaces the old one iff D_T(new) + D_mig < D_T(old) [5];
- overflow by growth [6]: memory is the resource (compute cannot run out, see above);
- backtracking [7]: the block placed before takes its next best device, 100 times at most.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from coordinator.planner.blocks import Blocks, delay_s, fits, move_s
from tools.simulation.paper_model import Observation

__all__ = ["algorithm1", "place_by_score"]

Floats = npt.NDArray[np.float64]

MAX_BACKTRACKS = 100
# Freed beyond the worst oversubscription [6].
OVERFLOW_MARGIN = 1.1


def algorithm1(before: Blocks | None, seen: Observation, residual: bool = False) -> Blocks | None:
    """Return the placement for this interval, or None where the algorithm says infeasible."""
    if before is not None and not fits(before, seen.costs):
        return _relieve(before, seen, residual)
    found = place_by_score(seen, residual)
    if before is None or found is None:
        return found or before
    gain_s = delay_s(before, seen.costs) - delay_s(found, seen.costs)
    return found if gain_s > move_s(before, found, seen.costs) else before


def place_by_score(
    seen: Observation, residual: bool, fixed: dict[int, int] | None = None
) -> Blocks | None:
    """Place blocks one after the other, each at its best score, with backtracking.

    Args:
        seen: the interval.
        residual: score against what is left of the devices.
        fixed: devices of blocks that stay where they are: 0 is proj, 1 ffn, 2... the heads.

    Returns:
        None where nothing is found within MAX_BACKTRACKS.
    """
    devices = dict(fixed or {})
    order = [i for i in _order(seen) if i not in devices]
    # For each block placed so far, the devices that it has not tried yet, best first.
    untried: list[list[int]] = []
    backtracks = 0
    while len(untried) < len(order):
        choices = _ranked(order[len(untried)], devices, seen, residual)
        while not choices:
            if not untried or backtracks == MAX_BACKTRACKS:
                return None
            backtracks += 1
            choices = untried.pop()
            del devices[order[len(untried)]]
        devices[order[len(untried)]] = choices[0]
        untried.append(choices[1:])
    return _blocks(devices, seen)


def _order(seen: Observation) -> list[int]:
    """Return block numbers by falling m/max M + b/max C: ffn, proj, then the heads [3]."""
    most_bytes, most_flop = float(seen.costs.room_bytes.max()), float(seen.flop_per_s.max())
    weight = [_bytes(i, seen) / most_bytes + _flop(i, seen) / most_flop for i in range(3)]
    return sorted(range(2 + seen.costs.n_heads), key=lambda i: -weight[min(i, 2)])


def _bytes(block: int, seen: Observation) -> float:
    return (seen.costs.proj_bytes, seen.costs.ffn_bytes, seen.costs.head_bytes)[min(block, 2)]


def _flop(block: int, seen: Observation) -> float:
    return (seen.proj_flop, seen.ffn_flop, seen.head_flop)[min(block, 2)]


def _ranked(block: int, devices: dict[int, int], seen: Observation, residual: bool) -> list[int]:
    """Return devices with memory for the block, best score first; those with S <= 1 if any."""
    costs = seen.costs
    room, rate = costs.room_bytes.copy(), seen.flop_per_s.copy()
    for other, j in devices.items():
        room[j] -= _bytes(other, seen)
        if residual:
            rate[j] -= _flop(other, seen)
    capacity = np.maximum(room, 1e-9) if residual else costs.room_bytes
    # Compute that is used up: the score is as bad as can be, and still ordered by speed.
    per_rate = np.where(rate > 0, _flop(block, seen) / np.maximum(rate, 1e-9), 1e9 - rate)
    score = np.maximum(_bytes(block, seen) / capacity, per_rate)
    if block == 0:
        heads_at = [j for other, j in devices.items() if other >= 2]
        score = np.maximum(score, costs.head_link_s[heads_at].sum(axis=0))
    elif block == 1 and 0 in devices:
        score = np.maximum(score, costs.proj_link_s[devices[0]])
    fitting = [int(j) for j in np.argsort(score, kind="stable") if room[j] >= _bytes(block, seen)]
    return [j for j in fitting if score[j] <= 1.0] or fitting


def _relieve(before: Blocks, seen: Observation, residual: bool) -> Blocks | None:
    """Unassign the largest blocks of overfull devices and place them again; None on failure."""
    devices = _devices(before)
    held = np.zeros(seen.costs.n_devices)
    for block, j in devices.items():
        held[j] += _bytes(block, seen)
    over = held - seen.costs.room_bytes
    target = OVERFLOW_MARGIN * over.max()
    freed = np.zeros_like(held)
    for block in sorted(devices, key=lambda i: -_bytes(i, seen)):
        j = devices[block]
        if over[j] > 0 and freed[j] < target:
            freed[j] += _bytes(block, seen)
            del devices[block]
    return place_by_score(seen, residual, devices)


def _devices(blocks: Blocks) -> dict[int, int]:
    heads = [j for j, n in enumerate(blocks.heads) for _ in range(n)]
    return dict(enumerate([blocks.proj, blocks.ffn, *heads]))


def _blocks(devices: dict[int, int], seen: Observation) -> Blocks:
    heads: Sequence[int] = [j for i, j in devices.items() if i >= 2]
    counts = np.bincount(heads, minlength=seen.costs.n_devices)
    return Blocks(tuple(counts.tolist()), devices[0], devices[1])
