"""A process that pulls all atoms of a model into a cache, in small chunks, until it is done."""

import resource
import signal
import sys
import threading
from pathlib import Path

import zmq

import agent.pull
import agent.puller
from agent.cache import CacheEntry
from agent.cache_store import CacheStore
from agent.pull import Wanted
from agent.puller import BulkSource, Sink, pull_objects
from kernels.errors import ResourceError
from tests.protocol.store_harness import all_atoms
from weights.manifest import Manifest

CHUNK_BYTES = 1024
DISK_FULL = 3


class OneObject(Sink):
    def take(self, wanted, data):
        self.data = bytes(data)


def pull_model(source, root, model_id, manifest_bytes, file_limit_bytes):
    """Pull everything that is missing; exits with DISK_FULL if files may not grow that far."""
    agent.pull.CHUNK_BYTES = CHUNK_BYTES
    agent.pull.RESEND_S = agent.puller.RESEND_S = 0.4
    if file_limit_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))
    context, going = zmq.Context(), threading.Event()

    def pull(wanted, sink):
        pull_objects(context, source, wanted, sink, lambda n_bytes: None, going)

    try:
        entry = CacheEntry(Path(root), model_id)
        manifest = entry.read_manifest()
        if manifest is None:
            sink = OneObject()
            pull([Wanted(model_id, manifest_bytes, "the manifest")], sink)
            manifest = Manifest.parse(sink.data)
            entry.write_manifest(sink.data)
        # Too little memory to go on without the disk.
        store = CacheStore(manifest, entry, memory_bytes=1, n_threads=1)
        store.ensure(all_atoms(manifest), pull, lambda n_bytes: None, going)
    except (ResourceError, OSError):
        sys.exit(DISK_FULL)
    finally:
        context.term()


def source_of(port, run_id, token):
    return BulkSource(f"tcp://127.0.0.1:{port}", run_id, token)
