"""Stores filled by pulls over an in-memory link."""

import threading

import numpy as np

from agent.bulk import Library
from agent.cache import CacheEntry
from agent.cache_store import CacheStore
from agent.messages import BulkRequest
from agent.pull import Chunk
from agent.puller import Sink

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

    def __call__(self, wanted, sink):
        for want in wanted:
            if len(self.names) == self.stop:
                raise self.error
            self.names.append(want.object_id)
            reply, data = self.library.answer(BulkRequest(1, want.object_id, 0, want.n_bytes))
            assert reply.error == ""
            sink.keep(Chunk(want, 0, data))
            sink.take(want, bytearray(data))


class Between(Sink):
    """Stands between a puller and its sink."""

    def __init__(self, sink):
        self.sink = sink

    def resume(self, wanted):
        return self.sink.resume(wanted)

    def keep(self, chunk):
        self.sink.keep(chunk)

    def take(self, wanted, data):
        self.sink.take(wanted, data)


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
