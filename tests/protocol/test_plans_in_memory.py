"""A board without a usable disk that goes through plans: what it holds never exceeds its offer."""

import threading

import numpy as np
import pytest

from agent import leases as leases_module
from agent import reserving as reserving_module
from agent.cache_store import CacheStore
from agent.events import LoadKey
from agent.frames import FrameType, Phase
from agent.holes import gaps
from agent.ids import Epoch, RunId
from agent.kv_ops import KvOp, KvOpCode
from agent.kv_shape import KvShape
from agent.leases import Leases
from agent.load_jobs import Reservation
from agent.member import kv_shape, wanted_atoms
from agent.messages import Failed, Heartbeat, Ready, Release
from agent.migration_messages import Arrive, Begun, Group, MoveEnd, MoveEnded, MoveFailed, Share
from agent.puller import Cancelled
from agent.reserving import reserve_mirror
from kernels.errors import ResourceError
from tests.protocol.agent_harness import assignment, make_model, running
from tests.protocol.store_harness import PLENTY, Pulls, all_atoms, cached, check_atoms, ensure
from tests.protocol.test_agent_steps import numbers
from tests.protocol.test_cache_trouble import FullDisk

PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("memory") / "model") as directory:
        yield directory


@pytest.fixture(scope="module")
def halves(model):
    atoms = all_atoms(model.manifest)
    return atoms[:9], atoms[9:]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nobody waits in real time for a member that is not let go."""
    monkeypatch.setattr(leases_module, "RELEASE_S", 0.0)


def n_bytes(atoms):
    return sum(a.n_bytes for a in atoms)


def in_memory(model, memory_bytes):
    return CacheStore(model.manifest, None, memory_bytes, 1)


def written_pages(store):
    """Return which pages hold anything; those that were given back read as zeros."""
    return set(np.flatnonzero(store.weights.reshape(-1, PAGE_BYTES).any(axis=1)))


def pages_of(atoms):
    return {
        page
        for a in atoms
        for page in range(
            a.offset_bytes // PAGE_BYTES, (a.offset_bytes + a.n_bytes - 1) // PAGE_BYTES + 1
        )
    }


class User:
    """Stands in for a member."""


class Dropping(threading.Event):
    """Whoever waits for it finds that a member went meanwhile."""

    def __init__(self, users):
        super().__init__()
        self.users = users

    def wait(self, timeout=None):
        self.users.clear()
        return super().wait(0)


def test_atoms_of_former_plans_are_given_back(model, halves):
    store = in_memory(model, max(n_bytes(half) for half in halves))
    for half in (*halves, *halves):
        assert ensure(store, half, Pulls(model))[0] == n_bytes(half)
        check_atoms(store, model, half)
        assert written_pages(store) <= pages_of(half)


def test_what_two_plans_share_stays(model, halves):
    store, shared = in_memory(model, PLENTY), halves[0][4:]
    ensure(store, halves[0], Pulls(model))
    pulled_bytes, _ = ensure(store, [*shared, *halves[1]], Pulls(model))
    assert pulled_bytes == n_bytes(halves[1])
    check_atoms(store, model, [*shared, *halves[1]])


def test_a_later_plan_is_held_to_the_limit_too(model, halves):
    store = in_memory(model, n_bytes(halves[0]) + 1)
    ensure(store, halves[0], Pulls(model))
    with pytest.raises(ResourceError, match=f"fit neither .* the {n_bytes(halves[0]) + 1} bytes"):
        ensure(store, [*halves[0], *halves[1]], Pulls(model))
    assert ensure(store, halves[0], Pulls(model, 0, AssertionError())) == (0, 0)


def test_chunks_of_a_former_plan_are_forgotten(model, halves):
    class Half:
        def __call__(self, wanted, sink):
            whole = model.atom_bytes(halves[0][1])
            sink.write(halves[0][1], 0, whole[:5000].tobytes())
            raise Cancelled("the link was lost")

    store = in_memory(model, PLENTY)
    with pytest.raises(Cancelled):
        ensure(store, halves[0][1:], Half())
    ensure(store, halves[1], Pulls(model))
    assert written_pages(store) <= pages_of(halves[1])
    ensure(store, halves[0], Pulls(model))
    check_atoms(store, model, halves[0])


def test_atoms_of_a_living_member_stay_and_count(model, halves):
    store, member = in_memory(model, n_bytes(halves[1]) + n_bytes(halves[0][:2])), User()
    ensure(store, halves[0][:3], Pulls(model))
    store.leases.add(member, halves[0][:3])
    with pytest.raises(ResourceError, match=f"beside {n_bytes(halves[0][:3])} of a plan that was"):
        ensure(store, halves[1], Pulls(model))
    ensure(store, halves[1][:3], Pulls(model))
    check_atoms(store, model, [*halves[0][:3], *halves[1][:3]])
    del member
    ensure(store, halves[1], Pulls(model))
    check_atoms(store, model, halves[1])


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_released_member_is_waited_for(model, halves, monkeypatch, cancelled):
    monkeypatch.setattr(leases_module, "RELEASE_S", 60.0)
    store, users = in_memory(model, max(n_bytes(half) for half in halves)), [User()]
    ensure(store, halves[0], Pulls(model))
    store.leases.add(users[0], halves[0])
    event = Dropping(users)
    if cancelled:
        event.set()
        with pytest.raises(Cancelled):
            store.ensure(halves[1], Pulls(model), print, event)
    else:
        store.ensure(halves[1], Pulls(model), print, event)
        check_atoms(store, model, halves[1])
    assert users == []


def test_leases_end_with_their_users(model, halves):
    leases, users = Leases(), [User(), User()]
    leases.add(users[0], halves[0][:2], 10)
    leases.add(users[1], halves[0][1:3], 5)
    assert (set(leases.atoms), leases.kv_bytes) == ({a.offset_bytes for a in halves[0][:3]}, 15)
    del users[0]
    assert (set(leases.atoms), leases.kv_bytes) == ({a.offset_bytes for a in halves[0][1:3]}, 5)


MIRROR = KvShape(8, 64, np.uint16, 64, 256, 4)


def reservation(event):
    groups = (Group(0, 0), Group(0, 1), Group(1, 0), Group(1, 1))
    return Reservation(LoadKey(RunId(5), Epoch(9)), MIRROR, groups, event)


def test_a_mirror_waits_for_what_was_just_released(monkeypatch):
    monkeypatch.setattr(leases_module, "RELEASE_S", 60.0)
    leases, users = Leases(), [User()]
    leases.add(users[0], (), 1)
    pool = reserve_mirror(reservation(Dropping(users)), leases, MIRROR.pool_bytes)
    assert users == []
    assert leases.kv_bytes == MIRROR.pool_bytes
    del pool
    assert leases.kv_bytes == 0


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_mirror_without_room_waits_for_no_plan_that_stays(monkeypatch, cancelled):
    monkeypatch.setattr(reserving_module, "WAIT_S", 60.0 if cancelled else 0.0)
    monkeypatch.setattr(leases_module, "RELEASE_S", 60.0)
    leases, user, event = Leases(), User(), threading.Event()
    leases.add(user, (), 1)
    if cancelled:
        event.set()
    with pytest.raises(Cancelled if cancelled else ResourceError):
        reserve_mirror(reservation(event), leases, MIRROR.pool_bytes)
    assert leases.kv_bytes == 1


def test_who_leaves_the_cache_takes_only_what_it_needs(model, halves, tmp_path):
    entry = FullDisk(tmp_path, model.model_id)
    entry.n_left = len(halves[0])
    store = cached(model, tmp_path, entry=entry, memory_bytes=n_bytes(halves[1]) + 600)
    ensure(store, halves[0], Pulls(model))
    assert not store.in_memory
    shared = halves[0][:1]
    pulls = Pulls(model)
    ensure(store, [*shared, *halves[1]], pulls)
    assert store.in_memory
    assert shared[0].hash not in pulls.names
    check_atoms(store, model, [*shared, *halves[1]])


def test_gaps(model, halves):
    atoms, end = all_atoms(model.manifest), model.manifest.weights_bytes
    found = list(gaps(reversed(atoms[3:5]), end))
    assert found == [(0, atoms[3].offset_bytes), (atoms[4].offset_bytes + atoms[4].n_bytes, end)]
    assert list(gaps([], end)) == [(0, end)]


HALVES = (
    {"groups": (0, 1), "columns": (0, 2), "vocab": (0, 1)},
    {"groups": (1, 1), "columns": (2, 2), "vocab": (1, 2)},
)


def needs(plan, model):
    kv_bytes = kv_shape(plan, model.geometry).pool_bytes
    return n_bytes(wanted_atoms(plan, model.manifest)) + kv_bytes


def no_disk(tmp_path):
    (tmp_path / "cache").write_text("no directory")
    return tmp_path


def test_an_agent_goes_through_plans_within_its_offer(model, tmp_path):
    """With room for one plan; the next one comes right behind the release of the former."""
    plans = [assignment(model, 0xABCDEF, epoch, **HALVES[epoch % 2]) for epoch in range(1, 5)]
    limit = max(needs(plan, model) for plan in plans)
    with running(model, no_disk(tmp_path), "--memory", str(limit)) as (coordinator, agent):
        for plan in plans:
            if plan.epoch == 1:
                ready = coordinator.join(plan)
            else:
                coordinator.tell(Release(plan.epoch - 1))
                ready = coordinator.assign(plan, (Ready, Failed))
            assert isinstance(ready, Ready)
            heartbeat = coordinator.until(Heartbeat)
            assert (heartbeat.epoch, heartbeat.resident_bytes) == (plan.epoch, ready.weights_bytes)
        assert "cannot be used" in agent.log


def test_a_plan_that_is_not_released_keeps_its_weights(model, tmp_path):
    with running(model, no_disk(tmp_path)) as (coordinator, _):
        coordinator.join(assignment(model, coordinator.run_id, 1, 0, **HALVES[0]))
        coordinator.kv(KvOp(KvOpCode.OPEN, 1, 10))
        before = coordinator.step(Phase.MLP, 1, numbers(1), [(1, 0)])[1]
        ready = coordinator.assign(
            assignment(model, coordinator.run_id, 2, 1, **HALVES[1]), (Ready, Failed)
        )
        assert isinstance(ready, Ready)
        header, after = coordinator.step(Phase.MLP, 1, numbers(1), [(1, 0)])
        assert (header.type, header.epoch) == (FrameType.PARTIAL, 1)
        assert after == before


@pytest.mark.parametrize("fits", [False, True])
def test_a_mirror_takes_no_more_than_what_plans_leave_of_the_offer(model, tmp_path, fits):
    plan = assignment(model, 0xABCDEF, 1, **HALVES[0])
    # As much as the plan's own pool, which has as many groups.
    mirror_bytes = kv_shape(plan, model.geometry).pool_bytes
    limit = needs(plan, model) + mirror_bytes - (not fits)
    with running(model, no_disk(tmp_path), "--memory", str(limit)) as (coordinator, _):
        coordinator.join(plan)
        share = Share(0, "other", "a", (Group(0, 1), Group(1, 1)))
        coordinator.tell(Arrive(plan.run_id, 2, 1, (share,), mirror=True))
        told = coordinator.until(Begun, MoveFailed)
        assert isinstance(told, Begun if fits else MoveFailed)
        if fits:
            coordinator.tell(MoveEnd(plan.run_id, 2, 2))
            coordinator.until(MoveEnded)
        else:
            assert f"a mirror of 2 head groups takes {mirror_bytes} bytes" in told.reason
        # Either way there is room for the next plan once this one has gone.
        coordinator.tell(Release(1))
        ready = coordinator.assign(assignment(model, plan.run_id, 3, **HALVES[0]), (Ready, Failed))
        assert isinstance(ready, Ready)
