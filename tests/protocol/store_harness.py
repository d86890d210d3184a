"""Stores filled by pulls over an in-memory link."""

import threading

import numpy as np

from agent.bulk import Library
from agent.cache import CacheEntry
from agent.messages import BulkRequest
from agent.store import CacheStore

PLENTY = 1 << 30


def all_atoms(manifest):
    return [
        manifest.atom(s.kind, s.layer, i)
        for s in manifest.sections
        for i in range(len(s.hashes))
    ]  # fmt: skip


class Pulls:
    """A puller that reads from the model at once; may stop or fail before object `stop`."""

    def __init__(self, model, stop=None, error=None):
        self.library = Library(1, model)
        self.stop, self.error = stop, error
        self.names = []

    def __call__(self, wanted, take):
        for want in wanted:
            if len(self.names) == self.stop:
                raise self.error
            self.names.append(want.object_id)
            reply, data = self.library.answer(BulkRequest(1, want.object_id, 0, want.n_bytes))
            assert reply.error == ""
            take(want, bytearray(data))


def cached(model, root, **changes):
    entry = CacheEntry(root, model.model_id)
    options = {"entry": entry, "memory_bytes": PLENTY, "n_threads": 2} | changes
    return CacheStore(model.manifest, **options)


def ensure(store, atoms, pulls):
    touched = []
    n_bytes = store.ensure(atoms, pulls, touched.append, threading.Event())
    return n_bytes, sum(touched)


def check_atoms(store, model, atoms):
    for atom in atoms:
        assert np.array_equal(store.blob(atom), model.atom_bytes(atom))
    assert store.resident_bytes == sum(a.n_bytes for a in atoms)
