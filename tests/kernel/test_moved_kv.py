"""Attention over keys and values that came from another board: the same bits."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from agent.ids import KvId
from agent.kv import KvPool, KvShape
from agent.kv_ops import KvOp, KvOpCode
from agent.kv_rows import export_rows, import_rows
from kernels.layout import WeightFormat
from kernels.pool import Pool
from kernels.stage import StageKernels
from tests.kernel_models import SMALL, PackedModel, make_model

F32 = npt.NDArray[np.float32]

TEXT, OTHER = KvId(1), KvId(2)
N_BEFORE, N_TOKENS = 75, 79  # the last page is half full when it moves
GEOMETRY = replace(SMALL, n_heads=6, n_kv_heads=3, qkv_bias=True)

FORMATS: list[Any] = [
    (WeightFormat.F32, np.float32, False),
    (WeightFormat.Q4, np.uint16, True),
    pytest.param(WeightFormat.Q4, np.int8, True, marks=pytest.mark.slow),
]


class Board:
    """Kernels of some head groups over a pool of their own."""

    def __init__(self, model: PackedModel, groups: list[int], kv_dtype: Any, int8: bool) -> None:
        g = model.geometry
        self.groups = groups
        self.kv = KvPool(KvShape(len(groups) * g.n_layers, g.head_dim, kv_dtype, 128, 256, 2))
        self.kv.pages.reshape(-1).view(np.uint8)[:] = 0xFF  # NaN, never to be read
        self.kernels = StageKernels(
            g, model.naive.inv_freq, model.naive.rope_scale, model.store,
            model.atoms([groups] * g.n_layers), self.kv.pages, self.kv.page_table, 80, 128,
            Pool(1), int8,
        )  # fmt: skip

    def open(self, kv_id: KvId) -> None:
        self.kv.apply([KvOp(KvOpCode.OPEN, kv_id, 100)])

    def local(self, layer: int, group: int) -> int:
        return layer * len(self.groups) + self.groups.index(group)

    def attend(self, kv_id: KvId, first: int, x: F32) -> list[F32]:
        """Return each layer's partial sum for rows of x at positions from `first` on."""
        n = len(x)
        positions = np.arange(first, first + n)
        slots = np.zeros(n, np.int32)
        table = np.stack([np.full(n, kv_id), positions], axis=1).astype(np.uint32)
        self.kv.prepare(table, slots)
        self.kernels.begin(slots, positions.astype(np.int32))
        outs = []
        for layer in range(GEOMETRY.n_layers):
            out = np.zeros_like(x)
            self.kernels.attention(layer, x, out)
            outs.append(out)
        return outs


@pytest.mark.parametrize(("fmt", "kv_dtype", "int8"), FORMATS)
def test_the_next_step_over_moved_rows_has_the_same_bits(
    fmt: WeightFormat, kv_dtype: Any, int8: bool
) -> None:
    model = make_model(replace(GEOMETRY, fmt=fmt))
    source = Board(model, [0, 1, 2], kv_dtype, int8)
    stayed, moved = (Board(model, [2, 0], kv_dtype, int8) for _ in range(2))
    x = np.random.default_rng(5).standard_normal((N_TOKENS, 40)).astype(np.float32)
    moved.open(OTHER)
    moved.attend(OTHER, 0, x[:70])  # so that pages have other numbers than at the source
    for board in (source, stayed, moved):
        board.open(TEXT)
    for board in (source, stayed):
        board.attend(TEXT, 0, x[:N_BEFORE])

    def move(first: int, n_tokens: int) -> None:
        moved.kv.extend(TEXT, first + n_tokens)
        for layer in range(GEOMETRY.n_layers):
            here = [source.local(layer, g) for g in moved.groups]
            data = export_rows(source.kv, TEXT, here, first, n_tokens)
            there = [moved.local(layer, g) for g in moved.groups]
            import_rows(moved.kv, TEXT, there, first, n_tokens, data)

    move(0, N_BEFORE)
    # More rows while the copy was under way: a catch-up behind the watermark.
    for board in (source, stayed):
        board.attend(TEXT, N_BEFORE, x[N_BEFORE : N_TOKENS - 1])
    move(N_BEFORE, N_TOKENS - 1 - N_BEFORE)
    expected = stayed.attend(TEXT, N_TOKENS - 1, x[N_TOKENS - 1 :])
    found = moved.attend(TEXT, N_TOKENS - 1, x[N_TOKENS - 1 :])
    for a, b in zip(found, expected, strict=True):
        assert np.isfinite(a).all()
        assert a.tobytes() == b.tobytes()
