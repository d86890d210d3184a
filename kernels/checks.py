"""What `stage` verifies once before any kernel runs; hot loops rely on it and check nothing."""

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.errors import InputError
from kernels.layout import ALIGN_BYTES, VOCAB_ROWS_PER_ATOM, Geometry
from kernels.paging import PAGE_DTYPES, PAGE_TOKENS, n_pages_for, page_elements
from kernels.tables import MemberAtoms

__all__ = ["check_atoms", "check_kv", "check_limits", "check_rope", "check_store", "row_error"]

AnyArray = npt.NDArray[Any]


def check_limits(max_rows: int, context_tokens: int) -> None:
    """Raise InputError unless both are at least 1."""
    if max_rows < 1 or context_tokens < 1:
        raise InputError(
            f"max_rows and context_tokens must be at least 1, got {max_rows} and {context_tokens}"
        )


def check_rope(geometry: Geometry, inv_freq: AnyArray, rope_scale: float) -> None:
    """Raise InputError unless inv_freq is (d/2,) finite float64 and d is even."""
    d = geometry.head_dim
    if d < 2 or d % 2 or geometry.n_heads % geometry.n_kv_heads:
        raise InputError(
            f"head_dim {d} must be even and n_heads {geometry.n_heads} a multiple of"
            f" n_kv_heads {geometry.n_kv_heads}"
        )
    if inv_freq.shape != (d // 2,) or inv_freq.dtype != np.float64:
        raise InputError(
            f"inv_freq must be float64 of shape ({d // 2},),"
            f" got {inv_freq.dtype} of shape {inv_freq.shape}"
        )
    if not (np.isfinite(inv_freq).all() and np.isfinite(rope_scale)):
        raise InputError("RoPE frequencies or scale hold NaN or infinity")


def check_store(store: AnyArray) -> None:
    """Raise InputError unless the store is flat, contiguous uint8 at a multiple of 64 bytes."""
    if store.dtype != np.uint8 or store.ndim != 1 or not store.flags.c_contiguous:
        raise InputError(
            f"the store must be a flat, contiguous uint8 array,"
            f" got {store.dtype} of shape {store.shape}"
        )
    if store.ctypes.data % ALIGN_BYTES:
        raise InputError(
            f"the store starts at address {store.ctypes.data:#x}, not a multiple of"
            f" {ALIGN_BYTES}; allocate it aligned or map the file from its start"
        )


def check_atoms(geometry: Geometry, atoms: MemberAtoms, store_bytes: int) -> None:
    """Raise InputError unless every blob lies aligned inside the store and counts agree."""
    n = len(atoms.layers)
    if not len(atoms.head_groups) == len(atoms.columns) == len(atoms.norms) == n:
        raise InputError(
            f"{n} layers need as many lists of head groups ({len(atoms.head_groups)}), columns"
            f" ({len(atoms.columns)}) and norms ({len(atoms.norms)})"
        )
    n_groups = geometry.n_kv_heads
    n_columns = geometry.n_column_atoms
    for layer, groups, columns in zip(atoms.layers, atoms.head_groups, atoms.columns, strict=True):
        _check_blobs(
            f"head groups of layer {layer}", groups, geometry.head_group_bytes, store_bytes
        )
        _check_blobs(f"columns of layer {layer}", columns, geometry.column_bytes, store_bytes)
        if len(groups) > n_groups or len(columns) > n_columns:
            raise InputError(
                f"layer {layer} has {n_groups} head groups and {n_columns} column atoms,"
                f" the member claims {len(groups)} and {len(columns)}"
            )
    _check_blobs("layer norms", atoms.norms, geometry.layer_norms_bytes, store_bytes)
    _check_vocab(geometry, atoms, store_bytes)


def _check_vocab(geometry: Geometry, atoms: MemberAtoms, store_bytes: int) -> None:
    """Check the vocab blobs, their rows, and the final norm that they need."""
    _check_blobs("vocabulary", atoms.vocab, geometry.vocab_bytes, store_bytes)
    first, rows = atoms.vocab_first_rows, atoms.vocab_n_rows
    if not (
        first.shape == rows.shape == atoms.vocab.shape and first.dtype == rows.dtype == np.int64
    ):
        raise InputError(
            f"{atoms.vocab.size} vocab blobs need as many int64 first rows {first.shape} and row"
            f" counts {rows.shape}"
        )
    in_blob = (rows >= 1) & (rows <= VOCAB_ROWS_PER_ATOM)
    in_vocab = (first >= 0) & (first + rows <= geometry.vocab_size)
    if not (in_blob & in_vocab).all():
        i = int(np.argmin(in_blob & in_vocab))
        raise InputError(
            f"vocab blob {i} claims {rows[i]} rows from token {first[i]}; a blob has 1 to"
            f" {VOCAB_ROWS_PER_ATOM} rows and the vocabulary {geometry.vocab_size}"
        )
    if atoms.vocab.size:
        norm = np.array([atoms.final_norm], np.int64)
        _check_blobs("final norm", norm, geometry.final_norm_bytes, store_bytes)


def _check_blobs(what: str, offsets: AnyArray, blob_bytes: int, store_bytes: int) -> None:
    """Check the offsets of blobs of one size."""
    if offsets.dtype != np.int64 or offsets.ndim != 1:
        raise InputError(
            f"offsets of {what} must be a flat int64 array,"
            f" got {offsets.dtype} of shape {offsets.shape}"
        )
    if not offsets.size:
        return
    low, high = int(offsets.min()), int(offsets.max())
    if low < 0 or high + blob_bytes > store_bytes:
        bad = low if low < 0 else high
        raise InputError(
            f"{what}: a blob of {blob_bytes} bytes at offset {bad} lies outside the store of"
            f" {store_bytes} bytes"
        )
    if (offsets % ALIGN_BYTES).any():
        bad = int(offsets[np.argmax(offsets % ALIGN_BYTES != 0)])
        raise InputError(f"{what}: offset {bad} is not a multiple of {ALIGN_BYTES}")


def check_kv(
    geometry: Geometry, atoms: MemberAtoms, pages: AnyArray, page_table: AnyArray, n_tokens: int
) -> None:
    """Raise InputError unless pool and page table fit the member and a context of n_tokens."""
    is_known = pages.dtype in PAGE_DTYPES.values()
    if not is_known or pages.ndim != 2 or not pages.flags.carray:
        raise InputError(
            "the KV pool must be a writable, contiguous (n_pages, elements) array of uint16"
            f" (float16 bits), float32 or int8, got {pages.dtype} of shape {pages.shape}"
        )
    n_elements = page_elements(geometry.head_dim, pages.dtype)
    if pages.shape[1] != n_elements:
        raise InputError(
            f"a KV page of head_dim {geometry.head_dim} has {n_elements} elements of"
            f" {pages.dtype}, the pool has {pages.shape[1]}"
        )
    if pages.ctypes.data % 4:
        raise InputError(
            f"the KV pool starts at address {pages.ctypes.data:#x}, not a multiple of 4 bytes,"
            " which the scales of int8 pages need; allocate it aligned"
        )
    if page_table.dtype != np.int32 or page_table.ndim != 3 or not page_table.flags.carray:
        raise InputError(
            "the page table must be a writable, contiguous (n_slots, n_local_groups, max_pages)"
            f" int32 array, got {page_table.dtype} of shape {page_table.shape}"
        )
    needed = (atoms.n_local_groups, n_pages_for(n_tokens))
    if page_table.shape[1] != needed[0] or page_table.shape[2] < needed[1]:
        raise InputError(
            f"the page table of shape {page_table.shape} must have {needed[0]} local groups and at"
            f" least {needed[1]} pages for {n_tokens} tokens"
        )


def row_error(
    row: int, slots: AnyArray, positions: AnyArray, context_tokens: int, page_table: AnyArray
) -> InputError:
    """Return the error that describes a row which `prepare_rows` refused."""
    slot, position = int(slots[row]), int(positions[row])
    if not 0 <= slot < page_table.shape[0]:
        return InputError(f"row {row}: slot {slot} is not in 0 .. {page_table.shape[0] - 1}")
    if not 0 <= position < context_tokens:
        return InputError(
            f"row {row}: position {position} is outside the context of {context_tokens} tokens;"
            " raise --ctx or shorten the text"
        )
    return InputError(
        f"row {row}: slot {slot} has no page in the pool for each position up to {position}"
        f" (pages of {PAGE_TOKENS}); open the context for more tokens first"
    )
