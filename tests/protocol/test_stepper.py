"""What a stepper tells of its calls: bytes to an emulated board's pace, and to speed samples."""

import numpy as np
import pytest

from agent.frames import (
    MAX_FRAME_BYTES,
    Flag,
    FrameType,
    Header,
    Phase,
    Wire,
    pack_header,
    payload_offset,
    read_header,
    write_rows,
)
from agent.ids import Epoch, RunId, Seq
from agent.kv_ops import KvOp, KvOpCode
from agent.member import make_member
from agent.read_bytes import ReadBytes
from agent.samples import Samples
from agent.stepper import Stepper
from agent.vocab_payload import SamplerRow, pack_sampler_rows
from kernels.pool import Pool
from tests.protocol.agent_harness import assignment, make_model


class FakePace:
    """Counts what it is asked to wait for, and waits for nothing."""

    def __init__(self):
        self.n_bytes = 0

    def wait(self, n_bytes, started_ns):
        assert started_ns > 0
        self.n_bytes += n_bytes


def step_frame(inbox, n_rows, n_vocab_rows):
    """Write a STEP of a whole stage into the inbox and return its header."""
    payload = np.ones(64 * n_rows, np.float32).tobytes()
    payload += pack_sampler_rows([SamplerRow()] * n_vocab_rows)
    frame = bytearray(MAX_FRAME_BYTES)
    header = Header(FrameType.STEP, Wire.F32, Epoch(1), RunId(1), Seq(0))._replace(
        phase=Phase.STAGE, flags=Flag.VOCAB_AFTER, n_rows=n_rows, n_vocab_rows=n_vocab_rows,
        payload_bytes=len(payload),
    )  # fmt: skip
    pack_header(frame, header)
    write_rows(frame, [1] * n_rows, list(range(n_rows)))
    start = payload_offset(n_rows)
    frame[start : start + len(payload)] = payload
    inbox[:] = np.frombuffer(frame, np.uint8)
    return read_header(inbox.data, start + len(payload))


@pytest.mark.parametrize(("n_rows", "n_vocab_rows"), [(1, 1), (3, 3), (3, 1), (1, 0)])
def test_a_stage_waits_once_for_all_that_it_reads(tmp_path, n_rows, n_vocab_rows):
    pool, samples, pace = Pool(1), Samples(8), FakePace()
    with make_model(tmp_path / "model") as directory:
        member = make_member(assignment(directory, 1), directory.manifest, directory.weights, pool)
        member.kv.apply([KvOp(KvOpCode.OPEN, 1, 100)])
        inbox, outbox = np.zeros(MAX_FRAME_BYTES, np.uint8), np.zeros(MAX_FRAME_BYTES, np.uint8)
        stepper = Stepper(member, inbox, outbox, samples, pace)
        stepper.step(step_frame(inbox, n_rows, n_vocab_rows))
        reads = ReadBytes(member)
        rows = np.array([(1, pos) for pos in range(n_rows)], np.uint32)
        stage = int(reads.of_rows(rows).sum())
        assert pace.n_bytes == stage + (reads.vocab if n_vocab_rows else 0)
        taken = samples.take().tolist()
        # Of many rows no speed is noted: they are bound by arithmetic.
        assert [n for n, _ in taken] == ([pace.n_bytes] if n_rows == 1 else [])
    pool.close()
