"""The cache and its place beside model directories, with pulls over an in-memory link."""

import os
import shutil
import threading

import numpy as np
import pytest

from agent.bulk import Library
from agent.cache import CacheEntry, default_cache_root
from agent.cache_store import CacheStore
from agent.messages import BulkRequest
from agent.puller import Cancelled
from agent.store import DirectoryStore, find_directory
from kernels.errors import ModelError
from tests.protocol.agent_harness import make_model
from tests.protocol.store_harness import PLENTY, Pulls, all_atoms, cached, check_atoms, ensure
from weights.manifest import content_hash


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("store") / "model") as directory:
        yield directory


@pytest.fixture(scope="module")
def atoms(model):
    return all_atoms(model.manifest)


def test_atoms_are_pulled_once_and_found_again(model, atoms, tmp_path):
    total_bytes = sum(a.n_bytes for a in atoms)
    store, pulls = cached(model, tmp_path), Pulls(model)
    assert ensure(store, atoms, pulls) == (total_bytes, 0)
    assert len(pulls.names) == len({a.hash for a in atoms})
    check_atoms(store, model, atoms)
    assert ensure(store, atoms, pulls) == (0, 0)
    again = cached(model, tmp_path)
    assert ensure(again, atoms, Pulls(model, 0, AssertionError())) == (0, total_bytes)
    check_atoms(again, model, atoms)
    assert sorted(p.name for p in again._entry.directory.iterdir()) == [
        "chunks", "journal", "lock", "users", "weights.bin",
    ]  # fmt: skip


def test_the_file_stays_sparse(model, atoms, tmp_path):
    store = cached(model, tmp_path)
    ensure(store, atoms[:1], Pulls(model))
    status = (store._entry.directory / "weights.bin").stat()
    assert status.st_size == model.manifest.weights_bytes
    assert status.st_blocks * 512 < status.st_size // 2


@pytest.mark.parametrize("n_before", [0, 1, 7])
def test_an_interrupted_pull_goes_on_where_it_stopped(model, atoms, tmp_path, n_before):
    first = Pulls(model, n_before, Cancelled("link lost"))
    with pytest.raises(Cancelled):
        ensure(cached(model, tmp_path), atoms, first)
    second = Pulls(model)
    store = cached(model, tmp_path)
    ensure(store, atoms, second)
    assert len(first.names) == n_before
    assert set(first.names).isdisjoint(second.names)
    check_atoms(store, model, atoms)


@pytest.mark.parametrize("damage", ["cut", "flip", "junk", "gone"])
def test_a_damaged_journal_costs_pulls_but_never_correctness(model, atoms, tmp_path, damage):
    store = cached(model, tmp_path)
    ensure(store, atoms, Pulls(model))
    journal = store._entry.directory / "journal"
    data = bytearray(journal.read_bytes())
    assert len(data) == 32 * len(atoms)
    if damage == "cut":
        journal.write_bytes(data[: 32 * 3 + 5])
    elif damage == "flip":
        data[32 * 5 + 9] ^= 1
        journal.write_bytes(data)
    elif damage == "junk":
        journal.write_bytes(os.urandom(1000))
    else:
        journal.unlink()
    for expected in ({"cut": 3, "flip": 5, "junk": 0, "gone": 0}[damage], len(atoms)):
        pulls, again = Pulls(model), cached(model, tmp_path)
        _, touched_bytes = ensure(again, atoms, pulls)
        assert touched_bytes == sum(a.n_bytes for a in atoms[:expected])
        check_atoms(again, model, atoms)


def test_bit_rot_is_found_and_pulled_again(model, atoms, tmp_path):
    store = cached(model, tmp_path)
    ensure(store, atoms, Pulls(model))
    with (store._entry.directory / "weights.bin").open("r+b") as file:
        file.seek(atoms[4].offset_bytes + 3)
        file.write(b"\xff\xfe")
    pulls, again = Pulls(model), cached(model, tmp_path)
    ensure(again, atoms, pulls)
    assert pulls.names == [atoms[4].hash]
    check_atoms(again, model, atoms)


def test_a_file_of_another_size_is_replaced(model, atoms, tmp_path):
    ensure(cached(model, tmp_path), atoms, Pulls(model))
    weights = CacheEntry(tmp_path, model.model_id).directory / "weights.bin"
    weights.write_bytes(b"short")
    store, pulls = cached(model, tmp_path), Pulls(model)
    ensure(store, atoms, pulls)
    assert len(pulls.names) == len({a.hash for a in atoms})
    check_atoms(store, model, atoms)


def test_an_entry_removed_by_another_process_is_filled_anew(model, atoms, tmp_path):
    store = cached(model, tmp_path)
    ensure(store, atoms[:3], Pulls(model))
    old = store.weights
    shutil.rmtree(store._entry.directory)
    store._entry.directory.mkdir()
    ensure(store, atoms, Pulls(model))
    check_atoms(store, model, atoms)
    # Members of an older epoch still read the file that was removed.
    assert np.array_equal(old[atoms[0].offset_bytes :][:64], model.atom_bytes(atoms[0])[:64])


def test_memory_alone(model, atoms):
    store = CacheStore(model.manifest, None, PLENTY, 1)
    pulls = Pulls(model)
    ensure(store, atoms[:4], pulls)
    ensure(store, atoms, pulls)
    check_atoms(store, model, atoms)
    assert len(pulls.names) == len(set(pulls.names))


def test_one_writer_at_a_time(model, atoms, tmp_path):
    first, second = (CacheEntry(tmp_path, model.model_id) for _ in range(2))
    assert first.try_lock()
    assert not second.try_lock()
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        cached(model, tmp_path, entry=second).ensure(atoms, Pulls(model), print, cancelled)
    first.unlock()
    assert second.try_lock()
    second.unlock()


def test_manifests_are_kept_and_checked(model, tmp_path):
    entry = CacheEntry(tmp_path, model.model_id)
    assert entry.read_manifest() is None
    entry.write_manifest(model.manifest.encode())
    assert entry.read_manifest().model_id == model.model_id
    (entry.directory / "manifest.json").write_bytes(b"{}")
    assert entry.read_manifest() is None


def test_a_directory_is_verified_and_found(model, atoms, tmp_path):
    parent = model.directory.parent
    (parent / "broken").mkdir(exist_ok=True)
    (parent / "broken" / "manifest.json").write_text("{")
    found = find_directory([tmp_path, parent], model.model_id)
    assert found is not None
    store = DirectoryStore(found, 2)
    assert ensure(store, atoms, None) == (0, sum(a.n_bytes for a in atoms))
    assert find_directory([parent], content_hash(b"another")) is None
    assert find_directory([tmp_path / "nowhere"], model.model_id) is None


def test_a_damaged_directory_names_the_atom(model, atoms, tmp_path):
    for name in ("manifest.json", "weights.bin"):
        (tmp_path / name).write_bytes((model.directory / name).read_bytes())
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.seek(atoms[2].offset_bytes)
        file.write(b"\xff\xff\xff\xff")
    store = DirectoryStore(find_directory([tmp_path], model.model_id), 1)
    with pytest.raises(ModelError, match=f"{atoms[2]} does not have the hash"):
        ensure(store, atoms, None)


def test_library_serves_hashes_and_nothing_else(model, atoms):
    library = Library(5, model)

    def error_of(object_id, offset, length, run_id=5):
        return library.answer(BulkRequest(run_id, object_id, offset, length))[0].error

    atom = atoms[0]
    assert error_of(atom.hash, 0, atom.n_bytes) == ""
    assert error_of(atom.hash, 0, atom.n_bytes, run_id=6) == "wrong run"
    assert error_of("../../etc/passwd", 0, 1) == "unknown object"
    for offset, length in [(0, 0), (-1, 2), (0, atom.n_bytes + 1), (atom.n_bytes, 1), (1 << 70, 1)]:
        assert error_of(atom.hash, offset, length) == "bad range"
    reply, data = library.answer(BulkRequest(5, model.model_id, 0, 10))
    assert (reply.error, bytes(data)) == ("", model.manifest.encode()[:10])


def test_default_cache_root(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_root() == tmp_path / "headwise"
