"""The frame of a text's next token: whatever was asked before, it is the one written anew."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from agent.frames import Flag, FrameType, Header, Phase, Wire, payload_offset, read_header
from agent.ids import Epoch, KvId, Rank, RunId, Seq
from agent.vocab_payload import SamplerRow, read_sampler_rows
from coordinator.schedule import Dispatch
from coordinator.token_frame import TokenFrame

D = 8
U32 = st.integers(0, 2**32 - 1)
SAMPLERS = st.builds(
    SamplerRow,
    st.sampled_from([0.0, 0.75]),
    st.sampled_from([1.0, 1.25]),
    st.booleans(),
    st.sampled_from([[], [7], [2, 5]]).map(lambda i: np.array(i, np.uint32)),
)
# Few kinds, so that many tokens are like the one before in all but one thing.
TOKENS = st.tuples(U32, st.sampled_from(Wire), st.integers(0, 1), U32, SAMPLERS, st.integers(0, 99))


PENALTY, NO_IDS = (0.0, 1.25), np.empty(0, np.uint32)


@example(
    [
        (1, Wire.F16, 0, 1, SamplerRow(*PENALTY, False, ids), 0)
        for ids in (np.array([7], np.uint32), NO_IDS)
    ]
)
@given(st.lists(TOKENS, min_size=1, max_size=12))
def test_every_frame_says_what_was_asked(asked: list[tuple[int, Wire, int, int, SamplerRow, int]]):
    header = Header(FrameType.STEP, Wire.F16, Epoch(3), RunId(2**63 + 1), Seq(77))
    frames = TokenFrame(header, Dispatch(Phase.STAGE, 4, (Rank(0),), True))
    for seq, wire, kv_id, position, sampler, seed in asked:
        x = np.random.default_rng(seed).standard_normal(D).astype(np.float32)
        x.flags.writeable = False
        frame = frames.packed(Seq(seq), wire, KvId(kv_id), position, sampler, x)
        found = read_header(frame, len(frame))
        assert found == Header(
            FrameType.STEP, wire, Epoch(3), RunId(2**63 + 1), Seq(seq), 4, Phase.STAGE,
            Flag.VOCAB_AFTER, Rank(0), 1, 1, 0, len(frame) - payload_offset(1),
        )  # fmt: skip
        assert np.frombuffer(frame, np.uint32, 2, 40).tolist() == [kv_id, position]
        dtype = np.dtype(np.float16 if wire is Wire.F16 else np.float32)
        stop = payload_offset(1) + D * dtype.itemsize
        assert frame[payload_offset(1) : stop] == x.astype(dtype).tobytes()
        (row,) = read_sampler_rows(bytes(frame[stop:]), 1)
        assert row[:3] == sampler[:3]
        assert row.penalised_ids.tolist() == sampler.penalised_ids.tolist()
