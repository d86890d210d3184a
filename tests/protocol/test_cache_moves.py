"""A cache with a limit, on a board that plans move to other atoms of the same model."""

import contextlib
import errno
import os
import queue
import subprocess
import sys

import numpy as np
import pytest
import zmq

from agent import cache as cache_module
from agent import leases as leases_module
from agent.cache import CacheEntry
from agent.cache_room import held_models
from agent.chunk_log import ChunkLog, ChunkRecord
from agent.events import Loaded, LoadFailed
from agent.holes import punch_hole
from agent.loader import Loader, LoaderOptions
from agent.member import wanted_atoms
from agent.messages import Failed, Heartbeat, Ready, Release
from agent.pull import Chunk
from agent.puller import Cancelled
from kernels.pool import Pool
from tests.protocol.agent_harness import DEADLINE_S, assignment, make_model, running
from tests.protocol.store_harness import PLENTY, Pulls, all_atoms, cached, check_atoms, ensure


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("moves") / "model", "f32") as directory:
        yield directory


@pytest.fixture(scope="module")
def halves(model):
    atoms = all_atoms(model.manifest)
    return atoms[:9], atoms[9:]


@pytest.fixture
def limit(model):
    return model.manifest.weights_bytes * 3 // 4


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nobody waits in real time for a member that is not let go."""
    monkeypatch.setattr(leases_module, "RELEASE_S", 0.0)


@pytest.fixture
def first(model, halves, limit, tmp_path):
    """A store that has the first half in the cache."""
    store = cached(model, tmp_path, limit_bytes=limit)
    ensure(store, halves[0], Pulls(model))
    assert not store.in_memory
    return store


def named(model, root):
    """Return which atoms the journal names."""
    entry = CacheEntry(root, model.model_id)
    names = entry.present(all_atoms(model.manifest))
    entry.close()
    return names


def offsets(atoms):
    return {a.offset_bytes for a in atoms}


def disk_bytes(root):
    return sum(held.disk_bytes for held in held_models(root))


class User:
    """Stands in for a member."""


def test_atoms_of_former_plans_give_way(model, halves, limit, first, tmp_path):
    for half in (halves[1], halves[0], halves[1]):
        ensure(first, half, Pulls(model))
        assert not first.in_memory
        check_atoms(first, model, half)
        assert named(model, tmp_path) == offsets(half)
        assert disk_bytes(tmp_path) <= limit


def test_after_a_restart_too(model, halves, limit, tmp_path):
    ensure(cached(model, tmp_path, limit_bytes=limit), halves[0], Pulls(model))
    store = cached(model, tmp_path, limit_bytes=limit)
    ensure(store, halves[1], Pulls(model))
    assert not store.in_memory
    again = cached(model, tmp_path, limit_bytes=limit)
    assert ensure(again, halves[1], Pulls(model, 0, AssertionError()))[0] == 0


def test_what_two_plans_share_is_not_pulled_again(model, halves, first, tmp_path):
    wanted = [*halves[0][-2:], *halves[1]]
    pulls = Pulls(model)
    ensure(first, wanted, pulls)
    assert not first.in_memory
    assert set(pulls.names) == {a.hash for a in halves[1]}
    check_atoms(first, model, wanted)
    assert named(model, tmp_path) == offsets(wanted)


def test_without_a_need_nothing_is_dropped(model, halves, tmp_path):
    store = cached(model, tmp_path, limit_bytes=2 * model.manifest.weights_bytes)
    for half in halves:
        ensure(store, half, Pulls(model))
    assert named(model, tmp_path) == offsets(all_atoms(model.manifest))


def test_other_models_give_way_before(model, halves, limit, first, tmp_path):
    other = CacheEntry(tmp_path, "a" * 32)
    (other.directory / "weights.bin").write_bytes(os.urandom(5000))
    other.close()
    ensure(first, halves[1], Pulls(model))
    assert not first.in_memory
    assert [held.model_id for held in held_models(tmp_path)] == [model.model_id]


def test_a_plan_beyond_the_limit_costs_no_atoms(model, halves, first, tmp_path):
    ensure(first, [*halves[0], *halves[1]], Pulls(model))
    assert first.in_memory
    check_atoms(first, model, [*halves[0], *halves[1]])
    assert named(model, tmp_path) == offsets(halves[0])


def test_atoms_of_a_living_member_stay(model, halves, first, tmp_path):
    member, mapped = User(), first.weights
    first.leases.add(member, halves[0])
    ensure(first, halves[1], Pulls(model))
    assert first.in_memory
    check_atoms(first, model, halves[1])
    for atom in halves[0]:
        blob = mapped[atom.offset_bytes :][: atom.n_bytes]
        assert np.array_equal(blob, model.atom_bytes(atom))
    assert named(model, tmp_path) == offsets(halves[0])


def test_a_member_takes_its_own_atoms_alone(model, halves, first):
    member, kept = User(), halves[0][:2]
    first.leases.add(member, kept)
    ensure(first, halves[1], Pulls(model))
    assert not first.in_memory
    check_atoms(first, model, [*kept, *halves[1]])


# Maps the model and lets go of the entry, as an agent does that has another model by now but an
# old member yet; then says whether what it mapped is what it was.
OTHER_PROCESS = """
import sys
from pathlib import Path
from agent.cache import CacheEntry
entry = CacheEntry(Path(sys.argv[1]), sys.argv[2])
assert entry.try_lock()
weights = entry.map_weights(int(sys.argv[3]))
entry.unlock()
entry.close()
before = weights.tobytes()
print("mapped", flush=True)
sys.stdin.readline()
print("same" if weights.tobytes()[: int(sys.argv[4])] == before[: int(sys.argv[4])] else "changed",
      flush=True)
"""


def test_nothing_is_taken_from_under_another_process(model, halves, limit, first, tmp_path, caplog):
    ends = str(halves[0][-1].offset_bytes + halves[0][-1].n_bytes)
    words = [str(tmp_path), model.model_id, str(model.manifest.weights_bytes), ends]
    command = [sys.executable, "-c", OTHER_PROCESS, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"mapped\n"
            ensure(first, halves[1], Pulls(model))
            assert first.in_memory
            assert "somebody else has the model mapped" in caplog.text
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"same\n"
        finally:
            process.kill()
    assert named(model, tmp_path) == offsets(halves[0])
    del first
    store = cached(model, tmp_path, limit_bytes=limit)
    ensure(store, halves[1], Pulls(model))
    assert not store.in_memory


def test_who_is_refused_is_still_reckoned_with(model, halves, limit, first, tmp_path):
    """The attempt lets go of the lock for a moment; what is mapped may outlive the store."""
    second = cached(model, tmp_path, limit_bytes=limit)
    ensure(second, halves[0], Pulls(model))
    mapped = second.weights
    ensure(second, halves[1], Pulls(model))
    assert second.in_memory
    ensure(first, halves[1], Pulls(model))
    assert first.in_memory
    for atom in halves[0]:
        blob = mapped[atom.offset_bytes :][: atom.n_bytes]
        assert np.array_equal(blob, model.atom_bytes(atom))
    del mapped, blob
    third = cached(model, tmp_path, limit_bytes=limit)
    ensure(third, halves[1], Pulls(model))
    assert not third.in_memory


def test_a_file_that_took_the_place_of_the_mapped_one_is_spared(model, halves, first):
    """Somebody deleted the cache, and another process filled it anew meanwhile."""
    path = first._entry.directory / "weights.bin"
    assert first._entry.try_lock()
    path.rename(path.with_name("old"))
    path.write_bytes(data := os.urandom(model.manifest.weights_bytes))
    assert first._entry.keep_only([])
    first._entry.unlock()
    assert path.read_bytes() == data
    assert not first.weights.any()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_filesystem_without_holes_is_told(
    model, halves, first, tmp_path, monkeypatch, caplog, number
):
    def fail(fd, start, n_bytes):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache_module, "punch_hole", fail)
    ensure(first, halves[1], Pulls(model))
    assert first.in_memory
    assert "gives no part of a file back" in caplog.text
    assert named(model, tmp_path) == offsets(halves[0])


def test_what_a_torn_end_left_on_the_disk_gives_way(
    model, halves, limit, first, tmp_path, monkeypatch
):
    def fail_inside(fd, start, n_bytes):
        if start < model.manifest.weights_bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(cache_module, "punch_hole", fail_inside)
    ensure(first, halves[1], Pulls(model))
    assert first.in_memory
    assert named(model, tmp_path) == set()
    monkeypatch.undo()
    store = cached(model, tmp_path, limit_bytes=limit)
    ensure(store, halves[1], Pulls(model))
    assert not store.in_memory
    check_atoms(store, model, halves[1])
    assert disk_bytes(tmp_path) <= limit


def test_holes_take_no_disk_and_spare_their_neighbours(tmp_path):
    path, data = tmp_path / "file", os.urandom(64 << 10)
    path.write_bytes(data)
    before = path.stat().st_blocks
    with path.open("r+b") as file:
        punch_hole(file.fileno(), 5000, 40_000)
        punch_hole(file.fileno(), len(data), 4096)
    assert path.stat().st_blocks <= before - 8 * (40_000 // 4096 - 1)
    assert path.read_bytes() == data[:5000] + bytes(40_000) + data[45_000:]
    with path.open("rb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        punch_hole(file.fileno(), 0, 4096)


def test_chunks_on_the_disk_are_not_counted_twice(model, halves, tmp_path):
    """The limit leaves room for what is missing, not for what is here again."""

    blobs = {a.hash: model.atom_bytes(a).tobytes() for a in halves[0]}

    def broken(wanted, sink):
        for want in wanted[:-1]:
            sink.keep(Chunk(want, 0, blobs[want.object_id][:-64]))
        raise Cancelled("the link was lost")

    limit = model.manifest.weights_bytes * 5 // 8
    with contextlib.suppress(Cancelled):
        ensure(cached(model, tmp_path, limit_bytes=limit), halves[0], broken)
    here_bytes = disk_bytes(tmp_path)
    assert here_bytes + sum(a.n_bytes for a in halves[0]) > limit
    store = cached(model, tmp_path, limit_bytes=limit)
    ensure(store, halves[0], Pulls(model))
    assert not store.in_memory
    check_atoms(store, model, halves[0])


def test_a_log_counts_each_byte_once(tmp_path):
    log = ChunkLog(tmp_path / "chunks")
    for start, n_bytes in [(50, 20), (0, 10), (5, 10), (60, 100), (0, 3)]:
        log.add(ChunkRecord(7, start, n_bytes, 0))
    assert log.covered_bytes(7, 1000) == 15 + 110
    assert log.covered_bytes(7, 100) == 15 + 50
    assert log.covered_bytes(8, 100) == 0
    log.keep_only({8})
    assert log.covered_bytes(7, 1000) == 0
    log.close()


def test_a_place_in_the_cache_is_no_model_directory(model, tmp_path):
    """Given with --model-dir its atoms would be used without anybody knowing."""
    entry = CacheEntry(tmp_path, model.model_id)
    entry.write_manifest(model.manifest.encode())
    entry.close()
    filling = cached(model, tmp_path)
    ensure(filling, all_atoms(model.manifest), Pulls(model))
    context, pool, events = zmq.Context(), Pool(1), queue.Queue()
    options = LoaderOptions((tmp_path / "models",), tmp_path, PLENTY, 1)
    loader = Loader(context, options, pool, events.put)
    try:
        loader.load(assignment(model, 5), "")
        while not isinstance(event := events.get(timeout=DEADLINE_S), (Loaded, LoadFailed)):
            pass
        assert event.ready.pulled_bytes == 0
        (store,) = loader._stores.values()
        assert not store.in_memory
    finally:
        assert loader.close(DEADLINE_S)
        pool.close()
        context.term()


def test_an_agent_keeps_its_cache_when_plans_move_it(model, limit, tmp_path):
    """The next plan comes right behind the release of the former, which kernels may still use."""
    halves = (
        {"groups": (0, 1), "columns": (0, 2), "vocab": (0, 1)},
        {"groups": (1, 1), "columns": (2, 2), "vocab": (1, 2)},
    )
    with running(model, tmp_path, "--cache-limit", str(limit)) as (coordinator, agent):
        coordinator.join(assignment(model, coordinator.run_id, 1, **halves[0]))
        for epoch in (2, 3):
            coordinator.tell(Release(epoch - 1))
            plan = assignment(model, coordinator.run_id, epoch, **halves[(epoch - 1) % 2])
            ready = coordinator.assign(plan, (Ready, Failed))
            assert isinstance(ready, Ready)
            assert ready.pulled_bytes > 0
            wanted = wanted_atoms(plan, model.manifest)
            assert named(model, tmp_path / "cache") == offsets(wanted)
            assert coordinator.until(Heartbeat).resident_bytes == ready.weights_bytes
        assert "running from memory" not in agent.log
