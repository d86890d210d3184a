"""One member of one plan on this board: its kernels, KV pages and where its atoms lie.

Turns an assignment and the bytes of its atoms into what the hot loop runs. Does not know how the
atoms came here (`store`) nor frames (`stepper`).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from agent.frames import HEADER_BYTES, MAX_FRAME_BYTES, MAX_ROWS, payload_offset
from agent.kv import KvPool, KvShape
from agent.share import Assignment, AtomRange, count_atoms, indices
from kernels.errors import PlanError, ResourceError
from kernels.layout import VOCAB_ROWS_PER_ATOM, Geometry
from kernels.paging import PAGE_DTYPES
from kernels.pool import Pool
from kernels.stage import MemberAtoms, StageKernels
from weights.manifest import AtomLocation, Manifest
from weights.sections import AtomKind

__all__ = [
    "Member",
    "atoms_of",
    "check_assignment",
    "kv_shape",
    "make_member",
    "reserve_pool",
    "shared_pool",
    "wanted_atoms",
]

MAX_CONTEXTS = 4096


@dataclass(frozen=True)
class Member:
    """What the hot loop runs for one epoch.

    Attributes:
        layer_index: place in the stage of each global layer number.
        holds_stage: whether it holds every atom of its stage's layers, so STAGE can run.
        vocab_ids: (n_local_rows,) uint32, token id of each local logit.
        vocab_first_ids: (n_atoms,) int64, token id of each vocab atom's first row.
        vocab_n_rows: (n_atoms,) int64, real rows of each vocab atom.
    """

    assignment: Assignment
    geometry: Geometry
    kernels: StageKernels
    kv: KvPool
    layer_index: dict[int, int]
    holds_stage: bool
    vocab_ids: npt.NDArray[np.uint32]
    vocab_first_ids: npt.NDArray[np.int64]
    vocab_n_rows: npt.NDArray[np.int64]

    @cached_property
    def group_index(self) -> dict[tuple[int, int], int]:
        """Place in the KV pool of each head group, by (layer, group)."""
        return {group: i for i, group in enumerate(_head_groups(self.assignment))}


def kv_shape(assignment: Assignment, geometry: Geometry) -> KvShape:
    """Return the sizes of the KV pool that an assignment needs."""
    return KvShape(
        n_groups=sum(count_atoms(share.head_groups) for share in assignment.layers),
        head_dim=geometry.head_dim,
        dtype=PAGE_DTYPES[assignment.kv],
        context_tokens=assignment.context_tokens,
        kv_tokens=assignment.kv_tokens,
        n_contexts=assignment.n_contexts,
    )


def check_assignment(assignment: Assignment, geometry: Geometry) -> None:
    """Check an assignment against the model before anything is reserved for it.

    Raises:
        PlanError: atoms that the model does not have, doubled atoms, or sizes out of bounds.
    """
    a = assignment
    layers = [share.layer for share in a.layers]
    if layers != sorted(set(layers)) or any(not 0 <= i < geometry.n_layers for i in layers):
        raise PlanError(
            f"assignment lists layers {layers}; expected rising ones below {geometry.n_layers}"
        )
    for share in a.layers:
        where = f" of layer {share.layer}"
        _check_ranges(f"head group{where}", share.head_groups, geometry.n_kv_heads)
        _check_ranges(f"column atom{where}", share.columns, geometry.n_column_atoms)
    _check_ranges("vocab atom", a.vocab, geometry.n_vocab_atoms)
    for name, value, most in (
        ("max_rows", a.max_rows, MAX_ROWS),
        ("n_contexts", a.n_contexts, MAX_CONTEXTS),
        ("context_tokens", a.context_tokens, 1 << 26),
        ("kv_tokens", a.kv_tokens, 1 << 32),
    ):
        if not 1 <= value <= most:
            raise PlanError(f"assignment has {name} {value}; 1 to {most} are possible")
    frame_bytes = payload_offset(a.max_rows) + 4 * a.max_rows * geometry.hidden_size
    if frame_bytes > MAX_FRAME_BYTES:
        raise PlanError(
            f"{a.max_rows} rows of {geometry.hidden_size} numbers make a frame of {frame_bytes} "
            f"bytes; at most {MAX_FRAME_BYTES} are possible: plan with fewer rows a step"
        )
    if HEADER_BYTES + 4 * VOCAB_ROWS_PER_ATOM * count_atoms(a.vocab) > MAX_FRAME_BYTES:
        raise PlanError(
            f"{count_atoms(a.vocab)} vocab atoms on one agent do not fit a frame of "
            f"{MAX_FRAME_BYTES} bytes; share the vocabulary out over more agents"
        )


def wanted_atoms(assignment: Assignment, manifest: Manifest) -> list[AtomLocation]:
    """Return every atom that the member needs resident, shared norms included, in file order.

    Raises:
        ModelError: the model has no such atom.
    """
    wanted: list[AtomLocation] = []
    for share in assignment.layers:
        layer = share.layer
        wanted.append(manifest.atom("layer_norms", layer, 0))
        wanted += [manifest.atom("head_group", layer, i) for i in indices(share.head_groups)]
        wanted += [manifest.atom("column", layer, i) for i in indices(share.columns)]
    if assignment.vocab:
        wanted.append(manifest.atom("final_norm", -1, 0))
        wanted += [manifest.atom("vocab", -1, i) for i in indices(assignment.vocab)]
    return sorted(wanted, key=lambda atom: atom.offset_bytes)


def atoms_of(assignment: Assignment, manifest: Manifest) -> MemberAtoms:
    """Return where each atom of the member lies in weights.bin."""
    layers = assignment.layers
    vocab_first = VOCAB_ROWS_PER_ATOM * _array(indices(assignment.vocab))
    vocab_n = np.minimum(VOCAB_ROWS_PER_ATOM, manifest.geometry.vocab_size - vocab_first)
    final_norm = manifest.atom("final_norm", -1, 0).offset_bytes if assignment.vocab else -1
    return MemberAtoms(
        layers=tuple(s.layer for s in layers),
        head_groups=tuple(_offsets(manifest, "head_group", s.layer, s.head_groups) for s in layers),
        columns=tuple(_offsets(manifest, "column", s.layer, s.columns) for s in layers),
        norms=_array([manifest.atom("layer_norms", s.layer, 0).offset_bytes for s in layers]),
        vocab=_offsets(manifest, "vocab", -1, assignment.vocab),
        vocab_first_rows=vocab_first,
        vocab_n_rows=vocab_n,
        final_norm=final_norm,
    )


def shared_pool(former: Member | None, assignment: Assignment, geometry: Geometry) -> KvPool:
    """Return the KV pool of a former epoch that an assignment takes over.

    Raises:
        PlanError: that epoch is not here, or its pool is another one than this epoch needs.
    """
    what = f"epoch {assignment.epoch} is to take over the KV pool of {assignment.kv_of_epoch}"
    if former is None:
        raise PlanError(f"{what}, which is not on this agent; assign it a pool of its own")
    before, after = former.kv.shape, kv_shape(assignment, geometry)
    if before != after or list(former.group_index) != _head_groups(assignment):
        raise PlanError(
            f"{what}, but it holds other head groups or contexts ({after.pool_bytes} bytes, not "
            f"{before.pool_bytes}); assign it a pool of its own"
        )
    return former.kv


def make_member(
    assignment: Assignment,
    manifest: Manifest,
    store: npt.NDArray[np.uint8],
    pool: Pool,
    kv: KvPool | None = None,
) -> Member:
    """Reserve the KV pool and set up the kernels.

    Args:
        assignment: checked by `check_assignment`.
        manifest: of the assignment's model.
        store: (weights_bytes,) uint8, as weights.bin; only the member's atoms need be there.
        pool: the worker threads, used by one thread at a time.
        kv: of `shared_pool`; None reserves one.

    Raises:
        ResourceError: the memory for the KV pool is not there.
    """
    geometry, config = manifest.geometry, manifest.config
    kv = reserve_pool(kv_shape(assignment, geometry)) if kv is None else kv
    atoms = atoms_of(assignment, manifest)
    kernels = StageKernels(
        geometry, config.inv_freq(), 1.0, store, atoms, kv.pages, kv.page_table,
        assignment.max_rows, assignment.context_tokens, pool, assignment.int8_activations,
    )  # fmt: skip
    vocab = zip(atoms.vocab_first_rows, atoms.vocab_n_rows, strict=True)
    ids = [np.arange(first, first + n, dtype=np.uint32) for first, n in vocab]
    return Member(
        assignment=assignment,
        geometry=geometry,
        kernels=kernels,
        kv=kv,
        layer_index={layer: i for i, layer in enumerate(atoms.layers)},
        holds_stage=_holds_stage(assignment, geometry),
        vocab_ids=np.concatenate(ids) if ids else np.empty(0, np.uint32),
        vocab_first_ids=atoms.vocab_first_rows,
        vocab_n_rows=atoms.vocab_n_rows,
    )


def reserve_pool(shape: KvShape) -> KvPool:
    """Return a new KV pool; ResourceError if the memory is not there."""
    try:
        return KvPool(shape)
    except MemoryError as e:
        raise ResourceError(
            f"no memory for a KV pool of {shape.pool_bytes} bytes; plan with a shorter context "
            f"or more agents"
        ) from e


def _holds_stage(assignment: Assignment, geometry: Geometry) -> bool:
    return bool(assignment.layers) and all(
        count_atoms(share.head_groups) == geometry.n_kv_heads
        and count_atoms(share.columns) == geometry.n_column_atoms
        for share in assignment.layers
    )


def _check_ranges(kind: str, ranges: tuple[AtomRange, ...], n_atoms: int) -> None:
    next_free = 0
    for r in sorted(ranges, key=lambda r: r.first):
        # Checked before expanding: a hostile range must not allocate.
        if r.first < next_free or r.count < 1 or r.first + r.count > n_atoms:
            raise PlanError(
                f"assignment names {kind}s {r.first} to {r.first + r.count - 1}, doubled or "
                f"beyond the model's {n_atoms}"
            )
        next_free = r.first + r.count


def _head_groups(assignment: Assignment) -> list[tuple[int, int]]:
    """Return the (layer, group) of each local group, in the order in which the pool has them."""
    return [(share.layer, i) for share in assignment.layers for i in indices(share.head_groups)]


def _array(values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


def _offsets(
    manifest: Manifest, kind: AtomKind, layer: int, ranges: tuple[AtomRange, ...]
) -> npt.NDArray[np.int64]:
    return _array([manifest.atom(kind, layer, i).offset_bytes for i in indices(ranges)])
