"""Work that a former run left behind never reaches the run of today: loader, hot loop, runtime."""

import queue
import random
import threading
from types import SimpleNamespace

import pytest
import zmq

from agent import loader as loader_module
from agent.address import Address
from agent.events import Joined, LinkLost, Loaded, LoadFailed, LoadKey
from agent.hot import HotLoop
from agent.loader import Loader, LoaderOptions
from agent.member import make_member
from agent.messages import Hello
from agent.runtime import Runtime
from agent.session import Session
from agent.versions import our_versions
from kernels.errors import ResourceError
from kernels.pool import Pool
from tests.protocol.agent_harness import DEADLINE_S, assignment, make_model

FORMER, PRESENT = LoadKey(111, 1), LoadKey(222, 1)
PLENTY = 1 << 30


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    with make_model(tmp_path_factory.mktemp("former") / "model") as directory:
        yield directory


@pytest.fixture
def pool():
    pool = Pool(1)
    yield pool
    pool.close()


class SlowMembers:
    """Stands in for make_member: the job of the former run waits inside until `go` is set."""

    def __init__(self, error=None):
        self.error = error
        self.inside, self.go = threading.Event(), threading.Event()

    def __call__(self, told, *rest):
        if told.run_id == FORMER.run_id:
            self.inside.set()
            assert self.go.wait(DEADLINE_S)
            if self.error is not None:
                raise self.error
        return make_member(told, *rest)


@pytest.fixture
def loading(directory, pool, monkeypatch):
    """Yield a function that starts a loader and returns it with its posted events."""
    monkeypatch.setattr(loader_module, "warm_kernels", lambda *_: None)
    context, loaders = zmq.Context(), []

    def start(members):
        monkeypatch.setattr(loader_module, "make_member", members)
        events = queue.Queue()
        options = LoaderOptions((directory.directory,), None, PLENTY, 1)
        loaders.append(Loader(context, options, pool, events.put))
        return loaders[-1], events

    yield start
    for loader in loaders:
        assert loader.close(DEADLINE_S)
    context.term()


@pytest.mark.parametrize("error", [None, ResourceError("no memory"), ValueError("a bug")])
def test_a_job_cancelled_inside_make_member_leaves_nothing(directory, loading, error):
    members = SlowMembers(error)
    loader, events = loading(members)
    loader.load(assignment(directory, *FORMER), "")
    assert members.inside.wait(DEADLINE_S)
    while not events.empty():
        assert events.get().key == FORMER
    loader.cancel(FORMER)
    loader.load(assignment(directory, *PRESENT), "")
    members.go.set()
    seen = []
    while not (seen and isinstance(seen[-1], Loaded)):
        seen.append(events.get(timeout=DEADLINE_S))
    assert {event.key for event in seen} == {PRESENT}
    assert loader.take(FORMER) is None
    assert loader.take(PRESENT).assignment.run_id == PRESENT.run_id
    assert loader.take(PRESENT) is None


def test_members_of_two_runs_are_told_apart(directory, loading):
    members = SlowMembers()
    members.go.set()
    loader, events = loading(members)
    for key in (FORMER, PRESENT):
        loader.load(assignment(directory, *key), "")
        while not isinstance(event := events.get(timeout=DEADLINE_S), Loaded):
            assert event.key == key
        assert event.key == key
    assert loader.take(PRESENT).assignment.run_id == PRESENT.run_id
    # A job cancelled after it was posted gives its member back.
    loader.cancel(FORMER)
    assert loader.take(FORMER) is None


class Holder:
    """A hot socket during whose send something happens."""

    def __init__(self, happen, error):
        self.happen, self.error = happen, error

    def setsockopt(self, option, value):
        pass

    def send(self, frame):
        self.happen()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("error", [None, zmq.Again()])
def test_a_hot_loop_stopped_during_its_hello_posts_nothing(directory, pool, stopped, error):
    events = []
    loop = HotLoop("tcp://127.0.0.1:1", b"a", FORMER.run_id, events.append)
    loop._holders = (Holder(loop.stop if stopped else lambda: None, error),)
    member = make_member(
        assignment(directory, *FORMER), directory.manifest, directory.weights, pool
    )
    loop._grant(FORMER.epoch, member)
    kind = Joined if error is None else LoadFailed
    assert [(type(e), e.key) for e in events] == ([] if stopped else [(kind, FORMER)])


@pytest.mark.parametrize("stopped", [False, True])
def test_a_stopped_hot_loop_that_fails_does_not_break_the_next_link(stopped):
    events = []
    loop = HotLoop("no address", b"a", FORMER.run_id, events.append)
    if stopped:
        loop.stop()
    loop.start()
    assert loop.join(DEADLINE_S)
    assert [type(e) for e in events] == ([] if stopped else [LinkLost])


@pytest.fixture
def runtime():
    hello = Hello("a", "i", our_versions(), 1, 1, PLENTY, 1e9)
    session = Session(hello, "tcp://c:1", random.Random(1))
    options = LoaderOptions((), None, PLENTY, 1)
    runtime = Runtime(hello, Address("127.0.0.1", 1), options, session)
    yield runtime
    assert runtime._loader.close(DEADLINE_S)
    runtime._pool.close()
    runtime._context.term()
    runtime._mailbox.close()


def test_the_runtime_adopts_and_drops_for_the_present_run_only(runtime):
    adopted, dropped = [], []
    runtime._hot = SimpleNamespace(
        run_id=PRESENT.run_id,
        adopt=lambda epoch, member: adopted.append(member.assignment.run_id),
        drop=dropped.append,
    )

    def member(key):
        return SimpleNamespace(assignment=SimpleNamespace(run_id=key.run_id))

    for key, built in [(PRESENT, FORMER), (FORMER, FORMER), (PRESENT, PRESENT)]:
        runtime._loader._members[key] = member(built)
        runtime._adopt(key)
    assert adopted == [PRESENT.run_id]
    assert [(type(e), e.key) for e in runtime._mailbox.take_nowait()] == [
        (LoadFailed, PRESENT), (LoadFailed, FORMER)
    ]  # fmt: skip
    runtime._drop(FORMER)
    assert dropped == []
    runtime._drop(PRESENT)
    assert dropped == [PRESENT.epoch]
