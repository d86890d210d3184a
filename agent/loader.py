"""The bulk thread: turns assignments into members, one after the other.

Finds or pulls the weights (`store`), checks them, reserves the KV pool, compiles the kernels, and
posts Loaded. Weights stay mapped when plans come and go. Everything slow happens here, so that
heartbeats and the hot loop go on meanwhile.
"""

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import zmq

from agent.ahead import Ahead
from agent.cache import CacheEntry
from agent.cache_store import CacheStore
from agent.curve import ClientCurve
from agent.events import Event, Loaded, LoadFailed, LoadKey, Reserved
from agent.files import is_disk_trouble
from agent.goodput import Goodput
from agent.ids import ModelId, RunId
from agent.kv import KvPool
from agent.kv_shape import KvShape
from agent.leases import n_bytes_of
from agent.load_jobs import LoadJob, ProbeJob, Reservation
from agent.load_progress import LoadProgress
from agent.member import (
    Member,
    check_assignment,
    kv_shape,
    make_member,
    shared_pool,
    wanted_atoms,
)
from agent.messages import Ready
from agent.migration_messages import Group
from agent.mirror_pool import MirrorPool
from agent.probe import handshake_s, probe_link
from agent.pull import Wanted
from agent.puller import BulkSource, Cancelled, Sink, pull_objects
from agent.reserving import reserve_mirror
from agent.share import Assignment
from agent.store import DirectoryStore, Store, find_directory
from agent.threads import NamedThread
from agent.warm import warm_kernels
from kernels.errors import HeadwiseError, PlanError, ResourceError
from kernels.layout import Geometry
from kernels.pool import Pool
from weights.manifest import MAX_MANIFEST_BYTES, AtomLocation, Manifest

__all__ = ["Loader", "LoaderOptions"]

log = logging.getLogger(__name__)

MAX_REASON = 1000
# How often a loader that has nothing to do looks whether the board rests.
LOOK_S = 0.5

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


class Loader:
    """Loads members in a thread of its own.

    Args:
        context: the ZeroMQ context.
        options: places and limits.
        pool: worker threads that the members' kernels will use.
        post: takes events for the control thread; called from this thread.
        rests: tells whether the board has nothing else to do; then atoms that are here are
            verified before a plan names them.

    Attributes:
        goodput: of the bulk link, by all that was pulled over it.
        round_trip_s: by the handshakes before the first pull or of the last probe, if known.
    """

    def __init__(
        self,
        context: Context,
        options: LoaderOptions,
        pool: Pool,
        post: Callable[[Event], None],
        rests: Callable[[], bool] = lambda: False,
    ) -> None:
        self._context = context
        self._options = options
        self._pool = pool
        self._post = post
        self._stores: dict[ModelId, Store] = {}
        self._members: dict[LoadKey, Member | MirrorPool] = {}
        # Members as long as somebody has them: the next epoch may share a pool.
        self._made: weakref.WeakValueDictionary[LoadKey, Member] = weakref.WeakValueDictionary()
        self.goodput = Goodput()
        self.round_trip_s: float | None = None
        self._shaken: RunId | None = None
        self._ahead = Ahead(rests)
        self._jobs: queue.SimpleQueue[LoadJob | Reservation | ProbeJob | None] = queue.SimpleQueue()
        self._current: dict[LoadKey, threading.Event] = {}
        # Makes "not cancelled, so keep and post" one step towards `cancel`.
        self._lock = threading.Lock()
        self._thread = NamedThread(self._run, "bulk")
        self._thread.start()

    def load(self, assignment: Assignment, bulk_endpoint: str, bulk_token: bytes = b"") -> None:
        """Begin an assignment; ends in Loaded or LoadFailed, or silently if cancelled."""
        curve = self._options.curve
        source = BulkSource(bulk_endpoint, assignment.run_id, bulk_token, curve)
        job = LoadJob(assignment, source, threading.Event())
        self._current[job.key] = job.cancelled
        self._jobs.put(job)

    def reserve(self, key: LoadKey, shape: KvShape, groups: tuple[Group, ...]) -> None:
        """Begin to reserve a mirror's pool; ends in Reserved or LoadFailed, as `load`."""
        job = Reservation(key, shape, groups, threading.Event())
        self._current[key] = job.cancelled
        self._jobs.put(job)

    def probe(self, run_id: RunId, bulk_endpoint: str, bulk_token: bytes, n_bytes: int) -> None:
        """Measure the bulk link by pulling at most n_bytes of no meaning over it."""
        source = BulkSource(bulk_endpoint, run_id, bulk_token, self._options.curve)
        self._jobs.put(ProbeJob(source, n_bytes))

    def cancel(self, key: LoadKey) -> None:
        """Give up an assignment; nothing more is posted for it and its member is freed."""
        with self._lock:
            cancelled = self._current.pop(key, None)
            if cancelled is not None:
                cancelled.set()
            self._members.pop(key, None)

    def take(self, key: LoadKey) -> Member | MirrorPool | None:
        """Hand over a loaded member or a pool; its last reference then belongs to the caller."""
        self._current.pop(key, None)
        return self._members.pop(key, None)

    @property
    def resident_bytes(self) -> int:
        """Bytes of verified atoms that are mapped."""
        return sum(store.resident_bytes for store in list(self._stores.values()))

    @property
    def unmapped_bytes(self) -> int:
        """Bytes of KV pools, and of weights that are no mapped file."""
        stores = list(self._stores.values())
        weights_bytes = sum(store.resident_bytes for store in stores if store.in_memory)
        return weights_bytes + sum(store.leases.pool_bytes for store in stores)

    def close(self, timeout_s: float) -> bool:
        """End the thread; False if it is still busy after timeout_s."""
        for cancelled in list(self._current.values()):
            cancelled.set()
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            if isinstance(job, ProbeJob):
                self._probe(job)
                continue
            key = job.key
            try:
                if isinstance(job, Reservation):
                    self._tell(job, Reserved(key, job.shape), self._reserve(job))
                else:
                    self._load(job)
            except Cancelled:
                log.info("epoch=%d loading was cancelled", key.epoch)
            except HeadwiseError as e:
                self._tell(job, LoadFailed(key, str(e)))
            except Exception as e:
                log.exception("epoch=%d loading failed", key.epoch)
                self._tell(job, LoadFailed(key, f"internal error: {e!r}"[:MAX_REASON]))
            del job

    def _next(self) -> LoadJob | Reservation | ProbeJob | None:
        """Return what to do next; meanwhile atoms are verified, if the board rests."""
        while True:
            waits = not self._stores or self._ahead.done
            try:
                job = self._jobs.get(timeout=None if waits else LOOK_S)
            except queue.Empty:
                try:
                    for store in self._stores.values():
                        self._ahead.look(store, self._options.memory_bytes)
                except Exception:
                    log.exception("atoms are not verified ahead")
                    self._ahead.stop()
                continue
            self._ahead.stop()
            return job

    def _probe(self, job: ProbeJob) -> None:
        try:
            self._shake_hands(job.source, again=True)
            probe_link(self._context, job.source, job.n_bytes, self.goodput)
        except Exception:
            # Such as no descriptor left: a later probe may do better, and loading must go on.
            log.exception("the link could not be measured")

    def _load(self, job: LoadJob) -> None:
        self._shake_hands(job.source)
        member, ready = self._carry_out(job)
        self._tell(job, Loaded(job.key, ready, member.kv.shape), member)

    def _shake_hands(self, source: BulkSource, again: bool = False) -> None:
        """Measure the round trip to a run's coordinator, before anything is pulled from it."""
        if again or self._shaken != source.run_id:
            self._shaken, self.round_trip_s = source.run_id, handshake_s(source.endpoint)

    def _tell(
        self, job: LoadJob | Reservation, event: Event, member: Member | MirrorPool | None = None
    ) -> None:
        """Post an event and keep the member it announces, unless the job was cancelled."""
        with self._lock:
            if job.cancelled.is_set():
                return
            if member is not None:
                self._members[job.key] = member
            self._post(event)

    def _carry_out(self, job: LoadJob) -> tuple[Member, Ready]:
        started_s = time.monotonic()
        assignment = job.assignment
        store = self._store(job)
        manifest = store.manifest
        check_assignment(assignment, manifest.geometry)
        atoms = wanted_atoms(assignment, manifest)
        weights_bytes = n_bytes_of(atoms)
        kv_bytes = kv_shape(assignment, manifest.geometry).pool_bytes
        kv = self._shared_pool(assignment, manifest.geometry)
        self._check_memory(store, atoms, kv_bytes if kv is None else 0, job.cancelled)
        progress = LoadProgress(lambda event: self._tell(job, event), job.key, weights_bytes)

        def pull(wanted: Sequence[Wanted], sink: Sink) -> None:
            base_bytes = progress.done_bytes
            pull_objects(
                self._context, job.source, wanted, sink,
                lambda n_bytes: progress.reach(base_bytes + n_bytes), job.cancelled,
                self.goodput,
            )  # fmt: skip

        pulled_bytes = store.ensure(atoms, pull, progress.add, job.cancelled)
        progress.finish()
        warm_kernels(manifest.geometry, assignment.kv, assignment.int8_activations)
        if job.cancelled.is_set():
            raise Cancelled("the assignment was withdrawn")
        member = make_member(assignment, manifest, store.weights, self._pool, kv)
        store.leases.add(member.kernels, atoms)
        if kv is None:
            store.leases.add(member.kv, (), kv_bytes)
        self._made[job.key] = member
        seconds = time.monotonic() - started_s
        log.info(
            "epoch=%d loaded weights_bytes=%d kv_bytes=%d pulled_bytes=%d seconds=%.2f",
            assignment.epoch, weights_bytes, kv_bytes, pulled_bytes, seconds,
        )  # fmt: skip
        return member, Ready(assignment.epoch, weights_bytes, kv_bytes, pulled_bytes, seconds)

    def _reserve(self, job: Reservation) -> MirrorPool:
        """Reserve a mirror's pool beside the plan's weights."""
        for store in self._stores.values():
            return reserve_mirror(job, store.leases, self._options.memory_bytes)
        raise PlanError("no plan's weights are on this agent, which a mirror goes with")

    def _shared_pool(self, assignment: Assignment, geometry: Geometry) -> KvPool | None:
        """Return the KV pool that an assignment takes over; None = it gets its own."""
        if not assignment.kv_of_epoch:
            return None
        former = self._made.get(LoadKey(assignment.run_id, assignment.kv_of_epoch))
        return shared_pool(former, assignment, geometry)

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

    def _store(self, job: LoadJob) -> Store:
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

    def _open_store(self, job: LoadJob) -> Store:
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

    def _pull_manifest(self, job: LoadJob) -> bytes:
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
