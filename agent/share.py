"""What one member of a plan holds: ranges of atoms, and the assignment that tells it so.

Does not know the other members: the plan as a whole lives in `coordinator.plan`.
"""

from typing import Literal

import msgspec

from agent.ids import Epoch, ModelId, Rank, RunId

__all__ = [
    "KV_HELP",
    "Assignment",
    "AtomRange",
    "KvFormat",
    "LayerShare",
    "WireFormat",
    "count_atoms",
    "indices",
]

WireFormat = Literal["f32", "f16"]
KvFormat = Literal["f16", "f32", "int8"]
KV_HELP = "KV cache type (default f16, with --exact f32; int8 takes half as much as f16)"


class AtomRange(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A run of neighbouring atoms of one class: [first, first + count)."""

    # A plan has thousands of them, which cannot be part of a cycle: no work for the collector.
    first: int
    count: int


class LayerShare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member's atoms of one layer."""

    layer: int
    head_groups: tuple[AtomRange, ...] = ()
    columns: tuple[AtomRange, ...] = ()


class Assignment(msgspec.Struct, frozen=True, tag="assign"):
    """One member's part of a plan, sent to it on the control channel.

    Attributes:
        run_id: the coordinator's random 64-bit run; part of every frame.
        epoch: version of the plan.
        rank: this member's number in the plan.
        model_id: hash of the model's manifest, which names the hash of every atom.
        manifest_bytes: size of that manifest.
        layers: the atoms of every layer of the member's stage, rising by layer; a layer where
            the member holds nothing is listed with empty ranges.
        vocab: vocab atoms held.
        wire: payload type of STEP, PARTIAL and RESIDUAL frames.
        kv: type of cached keys and values.
        context_tokens: longest context of one kv_id.
        kv_tokens: tokens of all open contexts together for which pages are reserved.
        n_contexts: most kv_ids open at once.
        max_rows: most rows of one STEP.
        kv_of_epoch: the epoch whose KV pool serves this one as well, because this member holds
            the same head groups in both; 0 = a pool of its own.
    """

    run_id: RunId
    epoch: Epoch
    rank: Rank
    model_id: ModelId
    manifest_bytes: int
    layers: tuple[LayerShare, ...]
    vocab: tuple[AtomRange, ...]
    wire: WireFormat
    kv: KvFormat
    context_tokens: int
    kv_tokens: int
    n_contexts: int
    max_rows: int
    kv_of_epoch: Epoch = Epoch(0)

    @property
    def int8_activations(self) -> bool:
        """Whether q8 and q4 weights meet activations of 8 bits: not in exact plans.

        Rounding to 8 bits makes of a difference of 1e-7, as between two orders of adding partial
        sums, one of 1e-3 now and then.
        """
        return self.wire == "f16"


def indices(ranges: tuple[AtomRange, ...]) -> list[int]:
    """Return the atom numbers that the ranges name, in their order."""
    return [i for r in ranges for i in range(r.first, r.first + r.count)]


def count_atoms(ranges: tuple[AtomRange, ...]) -> int:
    """Return how many atoms the ranges name together."""
    return sum(r.count for r in ranges)
