"""How long frames are under way, and what a board's calls read: two ends of the cost model."""

import numpy as np
import pytest

from agent.emulation import Emulation
from agent.frames import FrameType, Header, Wire
from agent.ids import Epoch, ModelId, Rank, RunId, Seq
from agent.member import Member
from agent.memory import Free
from agent.pulse import Pulse
from agent.read_bytes import ReadBytes
from agent.samples import Samples
from agent.share import Assignment, AtomRange, LayerShare
from coordinator.exchanges import MIN_TRIPS, PERIOD_S, Exchanges, medians
from coordinator.planner.cost import PlanRequest, atom_sizes
from coordinator.walk_phases import RANK_BITS
from kernels.layout import Geometry, WeightFormat

GEOMETRY = Geometry(
    hidden_size=256, n_layers=2, n_heads=8, n_kv_heads=4, head_dim=32, n_columns=640,
    vocab_size=1000, fmt=WeightFormat.Q8, norm_eps=1e-5,
)  # fmt: skip


def trips(rank: int, n_bytes: int, took_us: list[int]) -> np.ndarray:
    return np.array([(rank + (n_bytes << RANK_BITS), 1000 * us) for us in took_us], np.int64)


def test_the_median_of_small_frames_counts_for_each_member():
    pairs = np.concatenate(
        [
            trips(0, 8276, [600] * 20 + [9000] * 9),
            trips(1, 8276, [700] * MIN_TRIPS),
            trips(1, 1 << 20, [20_000] * 99),
            trips(2, 8276, [800] * (MIN_TRIPS - 1)),
            trips(3, 8276, [-5] * MIN_TRIPS),
            trips(9, 8276, [500] * MIN_TRIPS),
        ]
    )
    assert medians(pairs, 4) == {0: pytest.approx(600e-6), 1: pytest.approx(700e-6)}
    assert medians(pairs[:0], 4) == {}


def test_they_are_looked_at_once_a_second():
    exchanges = Exchanges(2)
    samples = exchanges.trips
    for pair in trips(1, 8276, [600] * MIN_TRIPS):
        samples.add(*pair.tolist())
    exchanges.look(5.0)
    assert exchanges.seconds() == [None, pytest.approx(600e-6)]
    for pair in trips(0, 8276, [900] * MIN_TRIPS):
        samples.add(*pair.tolist())
    exchanges.look(5.0 + PERIOD_S / 2)
    assert exchanges.seconds()[0] is None
    exchanges.look(5.0 + PERIOD_S)
    assert exchanges.seconds() == [pytest.approx(900e-6), pytest.approx(600e-6)]


def test_an_exchange_with_one_member_counts_without_the_walk():
    exchanges = Exchanges(2)
    reply = Header(FrameType.RESIDUAL, Wire.F16, Epoch(1), RunId(1), Seq(1))
    for _ in range(MIN_TRIPS):
        exchanges.note(8276, reply._replace(rank=Rank(1), busy_us=400, payload_bytes=8192), 1e-3)
    exchanges.look(1.0)
    assert exchanges.seconds() == [None, pytest.approx(600e-6)]


def member() -> Member:
    layers = (
        LayerShare(0, (AtomRange(0, 1), AtomRange(2, 2)), (AtomRange(0, 5),)),
        LayerShare(1, (), (AtomRange(3, 4),)),
    )
    told = Assignment(
        RunId(1), Epoch(1), Rank(0), ModelId("m"), 1, layers, (AtomRange(0, 3),), "f16", "f16",
        512, 512, 4, 64,
    )  # fmt: skip
    none = np.empty(0, np.int64)
    ids = np.empty(0, np.uint32)
    return Member(told, GEOMETRY, None, None, {0: 0, 1: 1}, False, ids, none, none)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_tokens", [1, 64, 100, 500])
def test_a_board_counts_bytes_as_the_planner_does(n_tokens: int):
    reads = ReadBytes(member())
    sizes = atom_sizes(GEOMETRY, PlanRequest(512, 512, typical_tokens=n_tokens))
    row = np.array([(7, n_tokens - 1)], np.uint32)
    assert reads.of_rows(row).tolist() == [
        3 * sizes.group_read, 0, 5 * sizes.column, 4 * sizes.column,
    ]  # fmt: skip
    assert reads.of_stage(row) == sum(reads.of_rows(row))
    assert reads.vocab == 3 * sizes.vocab
    assert not reads.nothing.any()


def test_keys_and_values_are_read_once_for_each_context():
    reads = ReadBytes(member())
    one, other = (reads.of_rows(np.array([(7, pos)], np.uint32)) for pos in (40, 99))
    rows = np.array([(7, 39), (8, 98), (7, 40), (8, 99)], np.uint32)
    both = reads.of_rows(rows)
    weights = 3 * GEOMETRY.head_group_bytes
    # Each context's share is rounded down to whole bytes.
    assert both[0] - weights == pytest.approx(one[0] + other[0] - 2 * weights, abs=3)
    assert both[1:].tolist() == one[1:].tolist()


class FakeGoodput:
    bytes_per_s, n_windows = 1e8, 3


class FakeLoader:
    goodput, round_trip_s, resident_bytes, unmapped_bytes = FakeGoodput(), None, 1000, 700


class FakeHot:
    samples, kv_bytes, n_steps, n_free_pages = Samples(), 500, 7, 9


MIB = 1 << 20


@pytest.mark.parametrize(
    ("available", "emulated", "budget", "reserve"),
    [
        # A tenth of what was there at the start stays free; what is held is freed for a new plan.
        (1000, None, 500 + 700, 100), (50, None, 600 - 64 + 700, 64), (1000, 300, 300, 0),
        (1000, 5000, 500 + 700, 0),
    ],
)  # fmt: skip
def test_a_heartbeat_tells_what_weights_and_kv_may_take(
    monkeypatch: pytest.MonkeyPatch,
    available: int,
    emulated: int | None,
    budget: int,
    reserve: int,
):
    monkeypatch.setattr("agent.memory.Memory.look", lambda _: Free(available * MIB, 600 * MIB))
    monkeypatch.setattr(FakeLoader, "unmapped_bytes", 700 * MIB)
    emulation = None if emulated is None else Emulation(None, emulated * MIB)
    beat = Pulse(FakeLoader(), emulation).beat(Epoch(0), None, None)  # type: ignore[arg-type]
    assert (beat.budget_bytes, beat.reserve_bytes) == (budget * MIB, reserve * MIB)


def test_a_heartbeat_tells_what_happened_since_the_one_before(monkeypatch: pytest.MonkeyPatch):
    faults = iter([5, 8, 8])
    monkeypatch.setattr("agent.pulse._major_faults", lambda: next(faults))
    pulse, hot = Pulse(FakeLoader()), FakeHot()  # type: ignore[arg-type]
    for i in range(40):
        hot.samples.add(1_000_000 if i % 2 else 5_000_000, 1_020_000 if i % 2 else 5_020_000)
    first = pulse.beat(Epoch(2), hot, 0.002)  # type: ignore[arg-type]
    assert (first.epoch, first.progress, first.kv_bytes, first.resident_bytes) == (2, 7, 500, 1000)
    assert first.bytes_per_s == pytest.approx(1e9, rel=1e-3)
    assert first.call_s == pytest.approx(20e-6, rel=1e-2)
    assert (first.major_faults, first.round_trip_s) == (3, 0.002)
    assert (first.goodput_bytes_per_s, first.n_goodput) == (1e8, 3)
    second = pulse.beat(Epoch(2), hot, None)  # type: ignore[arg-type]
    assert (second.bytes_per_s, second.call_s, second.major_faults) == (None, None, 0)


def test_a_heartbeat_tells_what_a_quota_leaves_though_calls_do_not_show_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("agent.quota.cpu_quota", lambda _: 0.5)
    pulse, hot = Pulse(FakeLoader(), n_threads=2), FakeHot()  # type: ignore[arg-type]
    for i in range(40):
        hot.samples.add(1_000_000 if i % 2 else 5_000_000, 1_020_000 if i % 2 else 5_020_000)
    beat = pulse.beat(Epoch(2), hot, None)  # type: ignore[arg-type]
    assert beat.bytes_per_s == pytest.approx(0.25e9, rel=0.01)


def test_pairs_stay_until_there_are_enough() -> None:
    samples = Samples(4)
    samples.add(1, 10)
    assert len(samples.take(2)) == 0
    samples.add(2, 20)
    assert samples.take(2).tolist() == [[1, 10], [2, 20]]
    assert len(samples.take(1)) == 0
    for i in range(3, 9):
        samples.add(i, 10 * i)
    assert samples.take(6).tolist() == [[i, 10 * i] for i in range(5, 9)]
