"""One member's kernels: everything is checked and allocated once, then each phase is one call.

Does not know sockets, files or plans; the caller owns the store, the KV pool and the page table.
See `phases` for the arithmetic and `checks` for what is verified.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.checks import (
    check_atoms,
    check_kv,
    check_limits,
    check_rope,
    check_store,
    row_error,
)
from kernels.entries import prepare_rows, run_stage
from kernels.entry import address_of
from kernels.errors import InputError
from kernels.formats import ATTENTION, LOGITS, MLP, RESIDUAL, weight_dtype
from kernels.layout import Geometry
from kernels.pool import Pool
from kernels.tables import MemberAtoms, build_tables

__all__ = ["MemberAtoms", "PhaseCall", "StageKernels", "TokenKernels"]

F32Array = npt.NDArray[np.float32]
I32Array = npt.NDArray[np.int32]

_F32 = np.dtype(np.float32)
_LAYERS = ATTENTION + MLP + RESIDUAL


class PhaseCall(NamedTuple):
    """How compiled code runs a phase: `call_at(address, (*head, what, first, stop, *tail))`."""

    address: int
    head: tuple[Any, ...]
    tail: tuple[Any, ...]


class TokenKernels(NamedTuple):
    """How compiled code runs a whole stage on one row, at another position each time.

    `ask_at(prepare_address, prepare)` takes the position from positions[0] and returns -1 if it is
    possible; then `call_at(stage_address, stage)` runs the stage.
    """

    positions: I32Array
    prepare_address: int
    prepare: tuple[Any, ...]
    stage_address: int
    stage: tuple[Any, ...]


class StageKernels:
    """The phases of one stage for the atoms that one member holds.

    Args:
        geometry: shapes of the model.
        inv_freq: (d/2,) float64, RoPE frequencies.
        rope_scale: attention factor of scaled RoPE variants, 1.0 for the others.
        store: (n,) uint8, C-contiguous, starts at a multiple of 64 bytes; memory or mapped file.
        atoms: which blobs lie where in the store.
        pages: (n_pages, page_elements) uint16 (float16 bits), float32 or int8, at a multiple of 4
            bytes, written.
        page_table: (n_slots, n_local_groups, max_pages) int32 page numbers, -1 where none. Local
            groups count the member's (layer, group) pairs in the order of atoms.head_groups.
            The caller may change its content between calls.
        max_rows: most rows of one call.
        context_tokens: longest context.
        pool: the threads to use; may serve several StageKernels, one call at a time.
        int8_activations: multiply q8 and q4 weights with activations rounded to 8 bits, several
            times as fast; other formats are not concerned.

    Raises:
        InputError: a shape, dtype, alignment or offset is wrong; the text names it.
    """

    def __init__(
        self,
        geometry: Geometry,
        inv_freq: npt.NDArray[np.float64],
        rope_scale: float,
        store: npt.NDArray[np.uint8],
        atoms: MemberAtoms,
        pages: npt.NDArray[Any],
        page_table: I32Array,
        max_rows: int,
        context_tokens: int,
        pool: Pool,
        int8_activations: bool = False,
    ) -> None:
        check_limits(max_rows, context_tokens)
        check_rope(geometry, inv_freq, rope_scale)
        check_store(store)
        check_atoms(geometry, atoms, store.size)
        check_kv(geometry, atoms, pages, page_table, context_tokens)
        self.n_layers = len(atoms.layers)
        self.n_local_rows = atoms.n_local_rows
        self.max_rows = max_rows
        self._hidden = geometry.hidden_size
        self._context_tokens = context_tokens
        self._pool = pool
        self._sync = pool.sync
        self._has_all = _holds_whole_layers(geometry, atoms)
        self._has_vocab = atoms.vocab.size > 0
        self._n_rows = 0
        self._shape = (0, self._hidden)
        self._checked_x: F32Array | None = None
        self._checked_out: F32Array | None = None
        self._addresses = (0, 0)
        self._slots = np.zeros(max_rows, np.int32)
        self._positions = np.zeros(max_rows, np.int32)
        dtype = np.dtype(weight_dtype(geometry.fmt, int8_activations))
        table, scratch = build_tables(
            geometry, atoms, max_rows, context_tokens, pool.n_threads, dtype.itemsize
        )
        weights = _read_only(store, dtype)
        floats = _read_only(store, np.float32)
        # Arguments of every kernel call, in order.
        self._arrays = (weights, floats, pages, page_table, table, scratch)
        # What workers are attached with: the numbers come with each job.
        self._attachment = (0, 0, 0, 0, 0, 0, 0, *self._arrays)
        leading = (0, pool.n_threads, pool.sync, 0, 0, 0, 0, 0, 0, 0)
        self._run_stage = run_stage.bind((*leading, *self._arrays), 3, 7)
        self._prepare_args = (
            self._slots, self._positions, 1, context_tokens, np.array(inv_freq),
            float(rope_scale), pages.shape[0], page_table, table, scratch,
        )  # fmt: skip
        self._prepare_rows = prepare_rows.bind(self._prepare_args, 2, 1)

    def begin(self, slots: I32Array, positions: I32Array) -> None:
        """Say which rows the coming calls work on.

        Args:
            slots: (n,) int32, first index of the page table for each row.
            positions: (n,) int32, the position of each row in its context. Keys and values of
                positions before it are in the pages already or come with rows of this call.

        Raises:
            InputError: too many rows, or a slot, position or page out of range.
        """
        n = len(slots)
        if not 1 <= n <= self.max_rows or len(positions) != n:
            raise InputError(
                f"a call takes 1 to {self.max_rows} rows with one slot and one position each,"
                f" got {n} slots and {len(positions)} positions"
            )
        self._n_rows = 0
        self._checked_x = self._checked_out = None
        self._slots[:n] = slots
        self._positions[:n] = positions
        bad = self._prepare_rows(n)
        if bad >= 0:
            raise row_error(bad, slots, positions, self._context_tokens, self._arrays[3])
        self._n_rows = n
        self._shape = (n, self._hidden)

    def attention(self, layer_index: int, x: F32Array, out: F32Array) -> None:
        """Write the partial sum of this member's head groups; zeros if it holds none.

        Args:
            layer_index: which of atoms.layers, counted from 0.
            x: (n, D) float32 residual, C-contiguous, unchanged.
            out: (n, D) float32, C-contiguous, written.

        Raises:
            InputError: no rows begun, or wrong layer, shape or dtype.
        """
        self._phase(ATTENTION, layer_index, x, out)

    def mlp(self, layer_index: int, x: F32Array, out: F32Array) -> None:
        """Write the partial sum of this member's MLP columns; arguments as for `attention`."""
        self._phase(MLP, layer_index, x, out)

    def run_layers(self, x: F32Array) -> None:
        """Run all layers of the stage on x (n, D) float32 in place, residual included.

        The sums are rounded exactly as by `attention` and `mlp` with the residual added by the
        caller.

        Raises:
            InputError: the member does not hold every atom of its layers, or x is wrong.
        """
        self._check_layers()
        self._check_x(x)
        address = address_of(x)
        self._run(_LAYERS, 0, self.n_layers, address, address, self._hidden)

    def logits(self, x: F32Array, out: F32Array) -> None:
        """Write final norm and vocabulary rows for every row, in the order of atoms.vocab.

        Args:
            x: (n, D) float32 residual after the last layer, C-contiguous, unchanged.
            out: (n, n_local_rows) float32, C-contiguous, written.

        Raises:
            InputError: the member holds no vocabulary, or an array is wrong.
        """
        self._check_logits(out)
        self._check_x(x)
        self._run(LOGITS, 0, 0, address_of(x), address_of(out), self.n_local_rows)

    def run_all(self, x: F32Array, out: F32Array) -> None:
        """Do `run_layers` and then `logits` in one call of the kernels: a token in one piece.

        Args:
            x: as for `run_layers`.
            out: as for `logits`.

        Raises:
            InputError: as by both.
        """
        self._check_layers()
        self._check_logits(out)
        self._check_x(x)
        addresses = address_of(x), address_of(out)
        self._run(_LAYERS + LOGITS, 0, self.n_layers, *addresses, self.n_local_rows)

    def phase_call(self, x: F32Array, out: F32Array) -> PhaseCall:
        """Return how compiled code runs `attention` and `mlp` on the rows begun.

        Valid until the next call of any other method.

        Args:
            x: (n, D) float32 residual, C-contiguous; keep it alive.
            out: (n, D) float32, C-contiguous, written by each call; keep it alive.

        Raises:
            InputError: no rows begun, or a wrong shape or dtype.
        """
        self._check_phase(x, out)
        self._attach()
        head: tuple[Any, ...] = (0, self._pool.n_threads, self._sync)
        tail: tuple[Any, ...] = (self._n_rows, *self._addresses, self._hidden, *self._arrays)
        # Compiles if need be: a job without phases does nothing.
        nothing: tuple[Any, ...] = (*head, 0, 0, 0, *tail)
        run_stage(*nothing)
        self._pool.check()
        return PhaseCall(run_stage.address(nothing), head, tail)

    def token_call(self, x: F32Array, logits: F32Array | None) -> TokenKernels:
        """Return how compiled code repeats `run_layers`, or `run_all`, for the row begun.

        Valid until the next call of any other method.

        Args:
            x: (1, D) float32 residual, C-contiguous, replaced; keep it alive.
            logits: (1, n_local_rows) float32, C-contiguous, written; None = the layers only.

        Raises:
            InputError: as by those two, or not one row begun.
        """
        self._check_layers()
        self._check_x(x)
        if self._n_rows != 1:
            raise InputError(f"{self._n_rows} rows are begun; a token is one")
        what, out, columns = _LAYERS, x, self._hidden
        if logits is not None:
            self._check_logits(logits)
            what, out, columns = _LAYERS + LOGITS, logits, self.n_local_rows
        self._attach()
        job = (0, self.n_layers, 1, address_of(x), address_of(out), columns)
        stage: tuple[Any, ...] = (0, self._pool.n_threads, self._sync, what, *job, *self._arrays)
        return TokenKernels(
            self._positions, prepare_rows.address(self._prepare_args), self._prepare_args,
            run_stage.address(stage), stage,
        )  # fmt: skip

    def _phase(self, what: int, layer: int, x: F32Array, out: F32Array) -> None:
        """Run one phase. Arrays that have just been checked are not checked again."""
        if x is not self._checked_x or out is not self._checked_out:
            self._check_phase(x, out)
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer index {layer} is not in 0 .. {self.n_layers - 1}")
        self._run(what, layer, layer + 1, *self._addresses, self._hidden)

    def _check_x(self, x: F32Array) -> None:
        if x.shape != self._shape or x.dtype != _F32 or not x.flags.carray:
            raise self._array_error("x", x, self._hidden)

    def _check_layers(self) -> None:
        if not self._has_all:
            raise InputError("run_layers needs a member that holds every atom of its layers")

    def _check_logits(self, out: F32Array) -> None:
        if not self._has_vocab:
            raise InputError("this member holds no vocabulary rows; ask another member for logits")
        if out.shape != (self._n_rows, self.n_local_rows) or out.dtype != _F32:
            raise self._array_error("out", out, self.n_local_rows)
        if not out.flags.carray:
            raise self._array_error("out", out, self.n_local_rows)

    def _check_phase(self, x: F32Array, out: F32Array) -> None:
        """Check the arrays of a phase and remember them until the next begin()."""
        self._check_x(x)
        if out.shape != self._shape or out.dtype != _F32 or not out.flags.carray:
            raise self._array_error("out", out, self._hidden)
        self._checked_x, self._checked_out = x, out
        self._addresses = (address_of(x), address_of(out))

    def _attach(self) -> None:
        """Have the workers wait for jobs on this member's arrays."""
        self._pool.attach(run_stage, self._attachment)

    def _run(
        self, what: int, first: int, stop: int, x_address: int, out_address: int, columns: int
    ) -> None:
        """Run phases on the pool's threads."""
        pool = self._pool
        if pool.n_threads > 1:
            self._attach()
        try:
            self._run_stage(what, first, stop, self._n_rows, x_address, out_address, columns)
        except BaseException:
            pool.abort()
            raise
        pool.check()

    def detach(self) -> None:
        """Have the pool's workers let go of this member's arrays, so that these can be freed."""
        self._pool.detach()

    def _array_error(self, name: str, array: npt.NDArray[Any], n_columns: int) -> InputError:
        """Return the error that describes a wrong activation array."""
        if self._n_rows == 0:
            return InputError("no rows are begun: call begin() before each step")
        return InputError(
            f"{name} must be a writable, aligned, C-contiguous float32 array of shape"
            f" ({self._n_rows}, {n_columns}), got {array.dtype} of shape {array.shape};"
            " copy it into such an array"
        )


def _read_only(store: npt.NDArray[np.uint8], dtype: Any) -> npt.NDArray[Any]:
    """Return the store as whole elements of dtype that cannot be written.

    Always read-only, so that memory and mapped files share one specialisation of each kernel.
    """
    item_bytes = np.dtype(dtype).itemsize
    view: npt.NDArray[Any] = store[: store.size // item_bytes * item_bytes].view(dtype)
    view.flags.writeable = False
    return view


def _holds_whole_layers(geometry: Geometry, atoms: MemberAtoms) -> bool:
    """Tell whether the member holds every group and column of each of its layers."""
    groups = all(len(offsets) == geometry.n_kv_heads for offsets in atoms.head_groups)
    return groups and all(len(offsets) == geometry.n_column_atoms for offsets in atoms.columns)
