"""The bulk thread: turns assignments into members, one after the other.

Finds or pulls the weights (`store`), checks them, reserves the KV pool, compiles the kernels, and
posts Loaded. Weights stay mapped when plans come and go. Everything slow happens here, so that
heartbeats and the hot loop go on meanwhile.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import zmq

from agent.cache import CacheEntry
from agent.cache_store import CacheStore
from agent.curve import ClientCurve
from agent.events import Event, Loaded, LoadFailed, LoadKey
from agent.files import is_disk_trouble
from agent.ids import ModelId
from agent.leases import n_bytes_of
from agent.load_progress import LoadProgress
from agent.member import Member, check_assignment, kv_shape, make_member, wanted_atoms
from agent.messages import Ready
from agent.pull import Wanted
from agent.puller import BulkSource, Cancelled, Sink, pull_objects
from agent.share import Assignment
from agent.store import DirectoryStore, Store, find_directory
from agent.warm import warm_kernels
from kernels.errors import HeadwiseError, PlanError, ResourceError
from kernels.pool import Pool
from weights.manifest import MAX_MANIFEST_BYTES, AtomLocation, Manifest

__all__ = ["Loader", "LoaderOptions"]

log = logging.getLogger(__name__)

MAX_REASON = 1000

Context = zmq.Context[zmq.Socket[bytes]]


class LoaderOptions(NamedTuple):
    """Where weights may come from and go to.

    `memory_bytes` is the budget that this agent offered; `cache_root` None means no disk cache,
    `curve` None links in clear, `cache_limit_bytes` None as much cache as the disk holds.
    """

    model_dirs: tuple[Path, ...]
    cache_root: Path | None
    memory_bytes: int
    n_threads: int
    curve: ClientCurve | None = None
    cache_limit_bytes: int | None = None


@dataclass(frozen=True)
class _Job:
    """One assignment to carry out, and where to pull from."""

    assignment: Assignment
    source: BulkSource
    cancelled: threading.Event

    @property
    def key(self) -> LoadKey:
        """The assignment's name in events."""
        return LoadKey(self.assignment.run_id, self.assignment.epoch)


class Loader:
    """Loads members in a thread of its own.

    Args:
        context: the ZeroMQ context.
        options: places and limits.
        pool: worker threads that the members' kernels will use.
        post: takes events for the control thread; called from this thread.
    """

    def __init__(
        self, context: Context, options: LoaderOptions, pool: Pool, post: Callable[[Event], None]
    ) -> None:
        self._context = context
        self._options = options
        self._pool = pool
        self._post = post
        self._stores: dict[ModelId, Store] = {}
        self._members: dict[LoadKey, Member] = {}
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._current: dict[LoadKey, threading.Event] = {}
        # Makes "not cancelled, so keep and post" one step towards `cancel`.
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="bulk", daemon=True)
        self._thread.start()

    def load(self, assignment: Assignment, bulk_endpoint: str, bulk_token: bytes = b"") -> None:
        """Begin an assignment; ends in Loaded or LoadFailed, or silently if cancelled."""
        curve = self._options.curve
        source = BulkSource(bulk_endpoint, assignment.run_id, bulk_token, curve)
        job = _Job(assignment, source, threading.Event())
        self._current[job.key] = job.cancelled
        self._jobs.put(job)

    def cancel(self, key: LoadKey) -> None:
        """Give up an assignment; nothing more is posted for it and its member is freed."""
        with self._lock:
            cancelled = self._current.pop(key, None)
            if cancelled is not None:
                cancelled.set()
            self._members.pop(key, None)

    def take(self, key: LoadKey) -> Member | None:
        """Hand over a loaded member; its last reference then belongs to the caller."""
        self._current.pop(key, None)
        return self._members.pop(key, None)

    @property
    def resident_bytes(self) -> int:
        """Bytes of verified atoms that are mapped."""
        return sum(store.resident_bytes for store in list(self._stores.values()))

    def close(self, timeout_s: float) -> bool:
        """End the thread; False if it is still busy after timeout_s."""
        for cancelled in list(self._current.values()):
            cancelled.set()
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            key = job.key
            try:
                member, ready = self._carry_out(job)
                self._tell(job, Loaded(key, ready), member)
                del member
            except Cancelled:
                log.info("epoch=%d loading was cancelled", key.epoch)
            except HeadwiseError as e:
                self._tell(job, LoadFailed(key, str(e)))
            except Exception as e:
                log.exception("epoch=%d loading failed", key.epoch)
                self._tell(job, LoadFailed(key, f"internal error: {e!r}"[:MAX_REASON]))
            del job

    def _tell(self, job: _Job, event: Event, member: Member | None = None) -> None:
        """Post an event and keep the member it announces, unless the job was cancelled."""
        with self._lock:
            if job.cancelled.is_set():
                return
            if member is not None:
                self._members[job.key] = member
            self._post(event)

    def _carry_out(self, job: _Job) -> tuple[Member, Ready]:
        started_s = time.monotonic()
        assignment = job.assignment
        store = self._store(job)
        manifest = store.manifest
        check_assignment(assignment, manifest.geometry)
        atoms = wanted_atoms(assignment, manifest)
        weights_bytes = n_bytes_of(atoms)
        kv_bytes = kv_shape(assignment, manifest.geometry).pool_bytes
        self._check_memory(store, atoms, kv_bytes, job.cancelled)
        progress = LoadProgress(lambda event: self._tell(job, event), job.key, weights_bytes)

        def pull(wanted: Sequence[Wanted], sink: Sink) -> None:
            base_bytes = progress.done_bytes
            pull_objects(
                self._context, job.source, wanted, sink,
                lambda n_bytes: progress.reach(base_bytes + n_bytes), job.cancelled,
            )  # fmt: skip

        pulled_bytes = store.ensure(atoms, pull, progress.add, job.cancelled)
        progress.finish()
        warm_kernels(manifest.geometry, assignment.kv, assignment.int8_activations)
        if job.cancelled.is_set():
            raise Cancelled("the assignment was withdrawn")
        member = make_member(assignment, manifest, store.weights, self._pool)
        store.leases.add(member.kernels, atoms, kv_bytes)
        seconds = time.monotonic() - started_s
        log.info(
            "epoch=%d loaded weights_bytes=%d kv_bytes=%d pulled_bytes=%d seconds=%.2f",
            assignment.epoch, weights_bytes, kv_bytes, pulled_bytes, seconds,
        )  # fmt: skip
        return member, Ready(assignment.epoch, weights_bytes, kv_bytes, pulled_bytes, seconds)

    def _check_memory(
        self,
        store: Store,
        atoms: Sequence[AtomLocation],
        kv_bytes: int,
        cancelled: threading.Event,
    ) -> None:
        offered, leases, weights_bytes = self._options.memory_bytes, store.leases, n_bytes_of(atoms)

        def total_bytes() -> int:
            held = leases.atoms | {atom.offset_bytes: atom for atom in atoms}
            return n_bytes_of(held.values()) + leases.kv_bytes + kv_bytes

        asked = f"the plan asks for {weights_bytes} bytes of weights and {kv_bytes} of KV"
        if weights_bytes + kv_bytes > offered:
            raise ResourceError(
                f"{asked} but this agent offers {offered} bytes; plan with more agents or a "
                f"shorter context"
            )
        if not leases.wait(lambda: total_bytes() <= offered, cancelled):
            raise ResourceError(
                f"{asked}, {total_bytes()} together with a plan that is still in force, but this "
                f"agent offers {offered} bytes; release that plan first"
            )

    def _store(self, job: _Job) -> Store:
        """Return the place of the assignment's model, opened once per model."""
        model_id = job.assignment.model_id
        store = self._stores.get(model_id)
        if store is None:
            # Another model takes the place of the former one: a board serves one at a time.
            for former in self._stores.values():
                former.close()
            self._stores.clear()
            store = self._stores[model_id] = self._open_store(job)
        return store

    def _open_store(self, job: _Job) -> Store:
        model_id, options = job.assignment.model_id, self._options
        if len(model_id) != 32 or not set(model_id) <= set("0123456789abcdef"):
            raise PlanError(f"assignment names model {model_id!r}, which is no hash")
        directory = find_directory(options.model_dirs, model_id)
        if directory is not None and not self._is_cached(directory.directory, model_id):
            log.info("model=%s directory=%s", model_id, directory.directory)
            return DirectoryStore(directory, options.n_threads)
        entry = self._open_entry(model_id)
        manifest = entry.read_manifest() if entry is not None else None
        if manifest is None:
            data = self._pull_manifest(job)
            manifest = Manifest.parse(data)
            entry = _keep_manifest(entry, data)
        return CacheStore(
            manifest, entry, options.memory_bytes, options.n_threads, options.cache_limit_bytes
        )

    def _is_cached(self, directory: Path, model_id: ModelId) -> bool:
        """Whether a directory is the model's place in our cache, where atoms come and go."""
        root = self._options.cache_root
        return root is not None and directory.resolve() == (root / "models" / model_id).resolve()

    def _open_entry(self, model_id: ModelId) -> CacheEntry | None:
        if self._options.cache_root is None:
            return None
        try:
            return CacheEntry(self._options.cache_root, model_id)
        except OSError as e:
            if not is_disk_trouble(e):
                raise
            log.warning("cache %s cannot be used: %s", self._options.cache_root, e)
            return None

    def _pull_manifest(self, job: _Job) -> bytes:
        n_bytes = job.assignment.manifest_bytes
        if not 1 <= n_bytes <= MAX_MANIFEST_BYTES:
            raise PlanError(f"assignment announces a manifest of {n_bytes} bytes")
        wanted = Wanted(job.assignment.model_id, n_bytes, "the manifest")
        sink = _Manifest()
        pull_objects(self._context, job.source, [wanted], sink, lambda _: None, job.cancelled)
        return sink.data


class _Manifest(Sink):
    """Takes the one object that is needed before the cache knows what it holds."""

    data = b""

    def take(self, wanted: Wanted, data: bytearray) -> None:
        """Take the manifest."""
        self.data = bytes(data)


def _keep_manifest(entry: CacheEntry | None, data: bytes) -> CacheEntry | None:
    if entry is None:
        return None
    try:
        entry.write_manifest(data)
    except OSError as e:
        if not is_disk_trouble(e):
            raise
        log.warning("cache %s cannot be written: %s", entry.directory, e)
        return None
    return entry
