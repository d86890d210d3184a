"""One call of every kernel but the phases, as the product makes them; for `arm_compiler`."""

import numpy as np

from agent.frames import FrameType, Header, Phase, Wire
from agent.ids import Epoch, Rank, RunId, Seq
from agent.phase_loop import StageCall, TokenCall, load_phase_loop, load_token_loop
from agent.samples import Samples
from coordinator.phase_walk import PhaseWalk
from coordinator.schedule import Dispatch
from coordinator.workspace import Workspace
from kernels import team
from kernels.exchange import add_partials
from kernels.layout import TILE_BYTES, WeightFormat
from kernels.pool import Pool
from kernels.tiles import unpack_row
from kernels.vocab import penalise, top_of_row
from kernels.wire_floats import decode_f16, encode_f16
from tests.kernel_models import geometry, make_model, make_stage
from tools.bandwidth import ReadBuffer

N = 40


def call_others() -> None:
    """Compile them; with arm_compiler's numba nothing is computed."""
    x, half = np.zeros(N, np.float32), np.zeros(N, np.uint16)
    encode_f16(x, half)
    decode_f16(half, x)
    add_partials(x, half.reshape(1, N), np.zeros(1, np.int32), 0, x)
    ids, atoms = np.zeros(4, np.uint32), np.zeros(1, np.int64)
    penalise(x, atoms, atoms, ids, 1.1)
    blob = np.zeros(TILE_BYTES[WeightFormat.Q4], np.uint8)
    unpack_row(blob, 0, 32, WeightFormat.Q4, np.zeros(32, np.float32))
    top_of_row(x, ids, 4, 1.0, np.zeros(1), ids.copy(), x.copy())
    sync = team.new_sync(1)
    team.init_semaphores(sync, 1)
    team.dismiss(sync, 1)
    team.count_up(sync, team.DONE)
    team.wait_count(sync, team.DONE, 0)
    ReadBuffer(1).read_sum(Pool(1), 1)
    _call_loop()
    _call_walk()


def _call_loop() -> None:
    stage = make_stage(make_model(geometry()))
    stage.begin(np.zeros(1, np.int32), np.zeros(1, np.int32))
    # The loop reaches the phases by their address, so any arguments of theirs will do.
    x, half, words = np.zeros(N, np.float32), np.zeros(N, np.uint16), stage._sync
    head, tail = (0, 1, words), (1, 0, 0, N, *stage._arrays)
    layers, read_bytes = np.zeros(1, np.int32), np.zeros(2, np.int64)
    load_phase_loop(StageCall(layers, read_bytes, half, x, x, half, 1, head, tail))
    ids, total = np.zeros(N, np.uint32), np.zeros(1)
    calls = (1, stage._prepare_args, 1, (*head, 0, 0, 0, *tail), 1, (x, ids, 1, 1.0, total, ids, x))
    load_token_loop(TokenCall(0, 0, 0, 0, layers, half, x, x, half, 1, *calls))


def _call_walk() -> None:
    inbox = np.zeros((2, 4096), np.uint8)
    limits = np.ones((1, 1), np.float32)
    schedule = [Dispatch(Phase.ATTENTION, 0, (Rank(0),))]
    walk = PhaseWalk(np.zeros(8, np.int64), 0, [b"route"], schedule, inbox, limits, Samples())
    header = Header(FrameType.STEP, Wire.F16, Epoch(1), RunId(1), Seq(0))
    walk.begin(Workspace(1, N), Wire.F16, header)
    walk.walk(0, 1, Seq(1))
