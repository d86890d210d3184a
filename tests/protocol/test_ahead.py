"""Atoms verified while a board rests, so that the plan that needs them has nothing to hash."""

import queue

import pytest
import zmq

import agent.store
from agent import loader as loader_module
from agent.ahead import Ahead, Rest
from agent.cache_store import CacheStore
from agent.events import Loaded, LoadFailed
from agent.loader import Loader, LoaderOptions
from agent.member import wanted_atoms
from agent.store import DirectoryStore
from kernels.errors import ModelError
from kernels.pool import Pool
from tests.protocol.agent_harness import DEADLINE_S, assignment, make_model
from tests.protocol.store_harness import PLENTY, Pulls, all_atoms, cached, ensure
from weights.directory import ModelDirectory
from weights.manifest import content_hash


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("ahead") / "model") as directory:
        yield directory


@pytest.fixture(scope="module")
def atoms(model):
    """Those that members need: embeddings are the coordinator's."""
    return [a for a in all_atoms(model.manifest) if a.kind != "embedding"]


@pytest.fixture
def hashed(monkeypatch):
    """Bytes that were hashed because a plan named them."""
    found = []
    monkeypatch.setattr(
        agent.store, "content_hash", lambda data: found.append(len(data)) or content_hash(data)
    )
    return found


def directory_store(model):
    return DirectoryStore(ModelDirectory.open(model.directory), 1)


def look(ahead, store, memory_bytes=PLENTY):
    """Let one round run to its end."""
    ahead.look(store, memory_bytes)
    if ahead._round is not None:
        ahead._round.join(DEADLINE_S)
        ahead.look(store, memory_bytes)


def n_bytes(atoms):
    return sum(a.n_bytes for a in atoms)


def test_a_plan_hashes_nothing_that_was_verified_ahead(model, atoms, hashed):
    store, ahead = directory_store(model), Ahead(lambda: True)
    ensure(store, atoms[:3], Pulls(model))
    assert len(hashed) == 3
    look(ahead, store)
    assert ahead.done
    # What no plan has is counted nowhere.
    assert store.resident_bytes == n_bytes(atoms[:3])
    assert ensure(store, atoms, Pulls(model)) == (0, n_bytes(atoms[3:]))
    assert len(hashed) == 3
    assert store.resident_bytes == n_bytes(atoms)
    ahead.stop()
    look(ahead, store)
    assert ahead.done


def test_only_what_the_journal_names_is_verified_ahead(model, atoms, hashed, tmp_path):
    ensure(cached(model, tmp_path), atoms[:5], Pulls(model))
    store, ahead, pulls = cached(model, tmp_path), Ahead(lambda: True), Pulls(model)
    look(ahead, store)
    assert ahead.done, "nothing is mapped before the first plan"
    ensure(store, atoms[:1], pulls)
    look(ahead, store)
    assert len(hashed) == 1
    pulled_bytes, touched_bytes = ensure(store, atoms, pulls)
    assert touched_bytes == n_bytes(atoms[1:5])
    assert pulled_bytes == n_bytes(atoms[5:])
    assert len(hashed) == 1


def test_nothing_is_done_while_the_board_has_work(model, atoms, hashed):
    store, ahead = directory_store(model), Ahead(lambda: False)
    look(ahead, store)
    assert not ahead.done
    ensure(store, atoms, Pulls(model))
    assert len(hashed) == len(atoms)


def test_a_round_ends_as_soon_as_there_is_work_and_what_it_found_counts(model, atoms, hashed):
    answers = iter([True, *[True] * 4])
    store, ahead = directory_store(model), Ahead(lambda: next(answers, False))
    look(ahead, store)
    assert not ahead.done
    ensure(store, atoms, Pulls(model))
    assert len(hashed) == len(atoms) - 4


def test_a_round_that_is_stopped_goes_on_later(model, atoms, hashed):
    ahead, store = Ahead(lambda: True), directory_store(model)
    ahead.look(store, PLENTY)
    ahead.stop()
    look(ahead, store)
    assert ahead.done
    ensure(store, atoms, Pulls(model))
    assert not hashed


def test_no_more_than_memory_holds_is_brought_in(model, atoms, hashed):
    store, ahead = directory_store(model), Ahead(lambda: True)
    ensure(store, atoms[:1], Pulls(model))
    room_bytes = n_bytes(atoms) // 2
    look(ahead, store, room_bytes)
    ensure(store, atoms, Pulls(model))
    assert n_bytes(atoms) - room_bytes <= sum(hashed) < n_bytes(atoms)


def test_what_is_damaged_in_the_cache_is_pulled_when_a_plan_names_it(model, atoms, tmp_path):
    store, ahead, pulls = cached(model, tmp_path), Ahead(lambda: True), Pulls(model)
    ensure(cached(model, tmp_path), atoms, Pulls(model))
    with (store._entry.directory / "weights.bin").open("r+b") as file:
        file.seek(atoms[4].offset_bytes + 3)
        file.write(b"\xff\xfe")
    ensure(store, atoms[:1], pulls)
    look(ahead, store)
    assert ahead.done, "what is damaged is hashed once, not for ever"
    assert not pulls.names
    ensure(store, atoms, pulls)
    assert pulls.names == [atoms[4].hash]


def test_what_is_damaged_in_a_directory_is_an_error_when_a_plan_names_it(tmp_path):
    with make_model(tmp_path / "model") as model:
        damaged = all_atoms(model.manifest)[0]
        with (model.directory / "weights.bin").open("r+b") as file:
            file.seek(damaged.offset_bytes)
            file.write(b"\xff\xfe\xfd")
        store, ahead = directory_store(model), Ahead(lambda: True)
        look(ahead, store)
        assert ahead.done
        with pytest.raises(ModelError, match="does not have the hash"):
            ensure(store, [damaged], Pulls(model))


def test_atoms_in_memory_were_hashed_when_they_came(model, atoms):
    store, ahead = CacheStore(model.manifest, None, PLENTY, 1), Ahead(lambda: True)
    ensure(store, atoms[:2], Pulls(model))
    look(ahead, store)
    assert ahead.done


def test_a_cache_that_somebody_writes_is_left_for_later(model, atoms, tmp_path):
    store, ahead, other = cached(model, tmp_path), Ahead(lambda: True), cached(model, tmp_path)
    ensure(store, atoms[:1], Pulls(model))
    assert other._entry.try_lock()
    look(ahead, store)
    assert not ahead.done
    other._entry.unlock()
    look(ahead, store)
    assert ahead.done


def test_a_loader_without_work_verifies_ahead(model, monkeypatch):
    monkeypatch.setattr(loader_module, "LOOK_S", 0.01)
    taken, events = queue.SimpleQueue(), queue.SimpleQueue()
    monkeypatch.setattr(
        DirectoryStore, "take_ahead", lambda _, sound, damaged: taken.put((sound, damaged))
    )
    options = LoaderOptions((model.directory,), None, PLENTY, 1)
    told = assignment(model, 7, groups=(0, 1))
    with zmq.Context() as context:
        pool = Pool(1)
        loader = Loader(context, options, pool, events.put, lambda: True)
        loader.load(told, "tcp://127.0.0.1:1")
        while not isinstance(event := events.get(timeout=DEADLINE_S), Loaded | LoadFailed):
            pass
        assert isinstance(event, Loaded)
        sound, damaged = taken.get(timeout=DEADLINE_S)
        assert not damaged
        wanted = wanted_atoms(told, model.manifest)
        assert sound
        assert {a.offset_bytes for a in sound}.isdisjoint(a.offset_bytes for a in wanted)
        assert loader.close(DEADLINE_S)
        pool.close()


def test_a_board_rests_when_it_has_done_nothing_for_long():
    done = iter([1, 1, 2, None, None, 2, 2])
    rest = Rest(lambda: next(done), for_s=0.0)
    # Asked while something is on that is not counted it says no, however long that lasts.
    assert [rest() for _ in range(7)] == [True, True, True, False, False, True, True]
    never = Rest(lambda: 1, for_s=float("inf"))
    assert not never()
