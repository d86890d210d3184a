"""A cache whose disk is full, fails or goes away: the agent runs from memory."""

import errno
import os
import shutil
import threading

import pytest

from agent.cache import CacheEntry
from kernels.errors import ResourceError
from tests.protocol.agent_harness import make_model
from tests.protocol.store_harness import Between, Pulls, all_atoms, cached, check_atoms, ensure


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("store") / "model") as directory:
        yield directory


@pytest.fixture(scope="module")
def atoms(model):
    return all_atoms(model.manifest)


class FullDisk(CacheEntry):
    """A cache entry whose disk is full after some writes, or fails in another way."""

    n_left = 5
    errno = errno.ENOSPC

    def write(self, atom, offset, data):
        if self.n_left == 0:
            raise OSError(self.errno, os.strerror(self.errno))
        self.n_left -= 1
        super().write(atom, offset, data)


def test_a_full_disk_means_running_from_memory(model, atoms, tmp_path, caplog):
    store = cached(model, tmp_path, entry=FullDisk(tmp_path, model.model_id))
    pulls = Pulls(model)
    ensure(store, atoms, pulls)
    assert "running from memory" in caplog.text
    assert store.in_memory
    check_atoms(store, model, atoms)
    assert len(pulls.names) == len(set(pulls.names)) + 1


def test_what_a_full_disk_holds_stays_good_for_other_agents(model, atoms, tmp_path):
    full = cached(model, tmp_path, entry=FullDisk(tmp_path, model.model_id))
    other = cached(model, tmp_path)
    ensure(other, atoms[:2], Pulls(model))
    n_good = 2 + FullDisk.n_left
    ensure(full, atoms, Pulls(model))
    assert full.in_memory
    pulls = Pulls(model)
    _, touched_bytes = ensure(other, atoms, pulls)
    assert not other.in_memory
    assert touched_bytes == sum(a.n_bytes for a in atoms[2:n_good])
    assert set(pulls.names).isdisjoint(a.hash for a in atoms[:n_good])
    check_atoms(other, model, atoms)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_cache_that_goes_away_means_running_from_memory(model, atoms, tmp_path, number):
    entry = FullDisk(tmp_path, model.model_id)
    entry.errno = number
    store = cached(model, tmp_path, entry=entry)
    ensure(store, atoms, Pulls(model))
    assert store.in_memory
    check_atoms(store, model, atoms)


@pytest.mark.parametrize("when", ["before the lock", "before the first write", "while written"])
def test_a_cache_deleted_under_an_agent_is_survived(model, atoms, tmp_path, when):
    store, pulls = cached(model, tmp_path), Pulls(model)

    class Deleting(Between):
        n_kept = 0

        def keep(self, chunk):
            if self.n_kept == (0 if when == "before the first write" else 3):
                shutil.rmtree(tmp_path / "models", ignore_errors=True)
            self.n_kept += 1
            super().keep(chunk)

    def pull(wanted, sink):
        pulls(wanted, Deleting(sink))

    if when == "before the lock":
        shutil.rmtree(tmp_path / "models")
    store.ensure(atoms, pull, lambda _: None, threading.Event())
    assert store.in_memory
    check_atoms(store, model, atoms)


def test_a_disk_that_fails_to_sync_is_not_trusted(model, atoms, tmp_path, monkeypatch):
    store = cached(model, tmp_path)

    def fail(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    ensure(store, atoms, Pulls(model))
    assert store.in_memory
    check_atoms(store, model, atoms)
    assert CacheEntry(tmp_path, model.model_id).present(atoms) == set()


def test_a_failed_sync_is_not_made_good_by_the_next(model, atoms, tmp_path, monkeypatch):
    entry = CacheEntry(tmp_path, model.model_id)
    assert entry.try_lock()
    entry.map_weights(model.manifest.weights_bytes)
    entry.write(atoms[0], 0, model.atom_bytes(atoms[0]).tobytes())
    entry.finish(atoms[0])
    results = [OSError(errno.EIO, "no sync"), None]

    def fail_once(fd):
        if (error := results.pop(0)) is not None:
            raise error

    monkeypatch.setattr(os, "fdatasync", fail_once)
    with pytest.raises(OSError, match="no sync"):
        entry.sync()
    entry.sync()
    assert entry.present(atoms) == set()
    entry.unlock()


def test_full_disk_and_too_little_memory_is_a_clear_error(model, atoms, tmp_path):
    store = cached(model, tmp_path, entry=FullDisk(tmp_path, model.model_id), memory_bytes=1000)
    with pytest.raises(ResourceError, match="fit neither the cache's disk nor the 1000 bytes"):
        ensure(store, atoms, Pulls(model))
