"""Threads that sleep until something happens, and how the system sees them."""

import os
import threading

import pytest
import zmq

from agent.bell import Bell
from agent.ids import AgentName
from agent.threads import NamedThread
from coordinator.admin_messages import Generate
from coordinator.inbox import Inbox
from coordinator.supervisor import Drain
from tools.faults.cpu_time import CpuTimes

pytestmark = pytest.mark.timeout(60)

# What is waited for has happened, or happens in another thread; else the test runs into its limit.
FOREVER_S = 1e6


def test_a_bell_wakes_whoever_waits_for_a_socket() -> None:
    bell = Bell()
    with zmq.Context() as context, context.socket(zmq.PAIR) as here, context.socket(
        zmq.PAIR
    ) as there:  # fmt: skip
        here.bind("inproc://bell")
        there.connect("inproc://bell")
        bell.ring()
        bell.ring()
        assert not bell.wait(here, FOREVER_S)  # rung before, once for both
        assert not bell.wait(here, 0.0)
        there.send(b"message")
        assert bell.wait(here, FOREVER_S)
        assert here.recv() == b"message"
        ringer = threading.Timer(0.01, bell.ring)
        ringer.start()
        assert not bell.wait(here, FOREVER_S)
        ringer.join()
        there.send(b"message")
        bell.ring()
        assert bell.wait(here, FOREVER_S)
        here.recv()
        assert not bell.wait(here, 0.0)


def test_nobody_waits_for_a_bell_that_is_rung_too_often() -> None:
    bell = Bell()
    for _ in range(100_000):  # more than a pipe holds
        bell.ring()
    bell.quiet()


def test_the_serving_thread_wakes_up_for_whatever_is_new() -> None:
    inbox, wish = Inbox(), Drain(AgentName("a"))
    inbox.nudge()
    inbox.wait(FOREVER_S, for_requests=False)
    inbox.submit(Generate())
    inbox.wait(FOREVER_S, for_requests=False)
    inbox.wait(FOREVER_S, for_requests=True)  # it is in line still
    inbox.post(wish)
    inbox.wait(FOREVER_S, for_requests=False)
    assert inbox.wishes() == [wish]
    waker = threading.Timer(0.01, inbox.nudge)
    waker.start()
    inbox.wait(FOREVER_S, for_requests=False)
    waker.join()
    assert waker.finished.is_set()


def test_threads_have_names_and_their_own_cpu_times() -> None:
    begun, over = threading.Event(), threading.Event()

    def spin() -> None:
        begun.wait(FOREVER_S)
        sum(range(2_000_000))
        over.set()
        begun.clear()
        begun.wait(FOREVER_S)

    thread = NamedThread(spin, "a-busy-thread-of-ours")
    thread.start()
    times = CpuTimes(os.getpid())
    begun.set()
    assert over.wait(FOREVER_S)
    shares = times.shares()
    begun.set()
    thread.join()
    assert 0.0 < shares.threads["a-busy-thread-o"] <= shares.total
    assert shares.threads["main"] >= 0.0
