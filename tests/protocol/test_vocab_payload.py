import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kv_ops import KvOp, KvOpCode, pack_kv_ops, read_kv_ops
from agent.vocab_payload import (
    MAX_PENALISED,
    TOP_CANDIDATES,
    SamplerRow,
    TopRow,
    pack_sampler_rows,
    pack_top_rows,
    read_sampler_rows,
    read_top_rows,
)
from kernels.errors import WireError

U32 = st.integers(0, 2**32 - 1)
F32 = st.floats(width=32, allow_nan=False)
IDS = st.lists(U32, max_size=6).map(lambda ids: np.array(ids, np.uint32))
SAMPLERS = st.lists(
    st.builds(
        SamplerRow,
        st.floats(0, 100, width=32),
        st.floats(0.125, 100, width=32),
        st.booleans(),
        IDS,
    ),
    max_size=4,
)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@given(SAMPLERS)
def test_sampler_rows_round_trip(rows):
    again = read_sampler_rows(pack_sampler_rows(rows), len(rows))
    assert all(same(a, b) for a, b in zip(rows, again, strict=True))


@given(st.lists(st.tuples(st.floats(allow_nan=False), st.lists(st.tuples(U32, F32), max_size=5))))
def test_top_rows_round_trip(raw):
    rows = [
        TopRow(lse, np.array([i for i, _ in c], np.uint32), np.array([x for _, x in c], np.float32))
        for lse, c in raw
    ]
    payload = pack_top_rows(rows)
    assert len(payload) % 8 == 0
    again = read_top_rows(payload, len(rows))
    assert all(same(a, b) for a, b in zip(rows, again, strict=True))


@given(st.binary(max_size=200), st.integers(0, 5))
def test_hostile_payloads_raise_nothing_but_wire_errors(junk, n_rows):
    for read in (read_sampler_rows, read_top_rows):
        with contextlib.suppress(WireError):
            assert len(read(junk, n_rows)) == n_rows


@given(SAMPLERS, st.data())
def test_mutated_sampler_blocks_raise_nothing_but_wire_errors(rows, data):
    block = bytearray(pack_sampler_rows(rows) + b"\0" * 4)
    block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    for n_bytes in (len(block), len(block) - 4, data.draw(st.integers(0, len(block)))):
        with contextlib.suppress(WireError):
            read_sampler_rows(bytes(block[:n_bytes]), len(rows))


def test_too_many_ids_are_refused():
    block = pack_sampler_rows([SamplerRow(penalised_ids=np.zeros(MAX_PENALISED + 1, np.uint32))])
    with pytest.raises(WireError, match="names 4097 ids"):
        read_sampler_rows(block, 1)
    n = TOP_CANDIDATES + 1
    payload = pack_top_rows([TopRow(0.0, np.zeros(n, np.uint32), np.zeros(n, np.float32))])
    with pytest.raises(WireError, match="names 257 candidates"):
        read_top_rows(payload, 1)


@pytest.mark.parametrize(
    ("temperature", "penalty"), [(-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, float("inf"))]
)
def test_absurd_options_are_refused(temperature, penalty):
    with pytest.raises(WireError, match="has temperature"):
        read_sampler_rows(pack_sampler_rows([SamplerRow(temperature, penalty)]), 1)


@given(st.lists(st.builds(KvOp, st.sampled_from(KvOpCode), U32, U32, U32)))
def test_kv_ops_round_trip(ops):
    assert read_kv_ops(pack_kv_ops(ops)) == ops


@given(st.binary(max_size=80))
def test_hostile_kv_ops_raise_nothing_but_wire_errors(junk):
    with contextlib.suppress(WireError):
        assert len(read_kv_ops(junk)) == len(junk) // 16
