"""Two epochs and the messages of a migration on the control channel, over real sockets."""

import threading
from collections.abc import Iterator

import pytest

from agent.ids import Epoch, ModelId, Rank
from agent.messages import Failed, Heartbeat, Loading, Ready, Release
from agent.migration_messages import Begun, Depart, Have, MoveFailed, Want
from agent.share import Assignment
from coordinator import control as control_module
from coordinator import register as register_module
from coordinator.membership import AgentState
from kernels.errors import AgentLostError, RemoteError
from tests.protocol.test_gate import RUN, A, B, Dialler, Rig, hello, until

OLD, NEW = Epoch(1), Epoch(2)
BEAT = Heartbeat(1, 1 << 30, 0)
HAVE = Have(RUN, NEW, 1, 0, 5)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(control_module, "FAREWELL_S", 0.01)
    rig = Rig()
    yield rig
    rig.close()


def assignment(epoch: Epoch) -> Assignment:
    return Assignment(
        RUN, epoch, Rank(0), ModelId("m"), 1, layers=(), vocab=(), wire="f32", kv="f32",
        context_tokens=64, kv_tokens=64, n_contexts=1, max_rows=4,
    )  # fmt: skip


def assigned(rig: Rig, agent: Dialler, epoch: Epoch) -> None:
    rig.control.assign({A: assignment(epoch)})
    assert agent.hears() == assignment(epoch)


def serving(rig: Rig) -> Dialler:
    """Agent `a`, ready in the old epoch."""
    agent, _ = rig.join(A)
    assigned(rig, agent, OLD)
    agent.say(Ready(OLD, 1, 1, 0, 0.1))
    rig.control.wait_ready(OLD, {A: 1}, 10.0)
    return agent


def test_an_agent_gets_ready_for_one_epoch_while_it_serves_another(rig: Rig) -> None:
    agent = serving(rig)
    assigned(rig, agent, NEW)
    agent.say(Loading(NEW, 1, 2))
    agent.say(Ready(NEW, 2, 2, 0, 0.1))
    rig.control.wait_ready(NEW, {A: 2}, 10.0)
    rig.control.wait_ready(OLD, {A: 1}, 10.0)
    (known,) = rig.control.agents()
    assert (known.state, known.epoch) == (AgentState.READY, OLD)
    rig.control.release(OLD)
    assert agent.hears() == Release(OLD)
    (known,) = rig.control.agents()
    assert (known.state, known.epoch, known.coming) == (AgentState.READY, NEW, None)
    rig.control.release(NEW)
    assert agent.hears() == Release(NEW)
    assert rig.control.agents()[0].state is AgentState.IDLE


def test_an_epoch_to_come_that_fails_or_is_released_costs_nothing(rig: Rig) -> None:
    agent = serving(rig)
    assigned(rig, agent, NEW)
    rig.control.release(NEW)
    assert agent.hears() == Release(NEW)
    assigned(rig, agent, Epoch(3))
    agent.say(Failed(Epoch(3), "disk full"))
    with pytest.raises(RemoteError, match="disk full"):
        rig.control.wait_ready(Epoch(3), {A: 2}, 10.0)
    rig.control.wait_ready(OLD, {A: 1}, 10.0)
    assert rig.control.failed(Epoch(3)) == {A}
    assert rig.control.agents()[0].coming is None


def test_reports_come_in_order_with_their_agents_name(rig: Rig) -> None:
    (a, _), (b, _) = rig.join(A), rig.join(B)
    said = [Begun(RUN, NEW, True), HAVE, MoveFailed(RUN, NEW, "no \x1b[2Jpages")]
    for report in said:
        a.say(report)
    taken: list[object] = []
    while len(taken) < 3:
        rig.control.wait_reports(10.0)
        taken += rig.control.take_reports()
    # What people will read of it is fit to be read.
    said[2] = MoveFailed(RUN, NEW, "no \\x1b[2Jpages")
    assert taken == [(A, report) for report in said]
    assert rig.control.take_reports() == []
    b.say(HAVE)
    assert until(lambda: rig.control.take_reports() == [(B, HAVE)])


def test_reports_of_strangers_are_not_taken_and_those_of_agents_are_signs_of_life(
    rig: Rig,
) -> None:
    stranger = rig.dial(rig.pairs[B], b"b/1")
    stranger.say(HAVE)
    assert "not registered" in getattr(stranger.hears(), "reason", "")
    assert rig.control.take_reports() == []
    agent, _ = rig.join(A)
    assert rig.control.agents()[0].state is AgentState.JOINING
    agent.say(HAVE)
    assert until(lambda: rig.control.take_reports() == [(A, HAVE)])
    assert rig.control.agents()[0].state is AgentState.IDLE


def test_one_agents_reports_do_not_keep_the_others_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register_module, "MAX_REPORTS", 5)
    monkeypatch.setattr(register_module, "MAX_REPORTS_OF_ONE", 4)
    (a, _), (b, _) = rig.join(A), rig.join(B)
    for _ in range(7):
        a.say(HAVE)
    assert until(lambda: rig.control.n_reports_dropped == 3)
    for _ in range(2):
        b.say(HAVE)
    assert until(lambda: rig.control.n_reports_dropped == 4)
    assert rig.control.take_reports() == [*4 * [(A, HAVE)], (B, HAVE)]
    a.say(HAVE)
    assert until(lambda: rig.control.take_reports() == [(A, HAVE)])


def test_orders_go_out_in_order_and_to_nobody_who_is_gone(rig: Rig) -> None:
    agent, _ = rig.join(A)
    orders = [Depart(RUN, NEW, OLD, ()), Want(RUN, NEW, 1, 0, 5)]
    for order in orders:
        rig.control.order(A, order)
    assert [agent.hears(), agent.hears()] == orders
    with pytest.raises(AgentLostError, match="agent 'b' is gone"):
        rig.control.order(B, orders[0])


def test_losses_are_told_once_with_their_reason(rig: Rig) -> None:
    rig.join(A)
    rig.join(B)
    rig.gate.revoke(A)
    assert until(lambda: rig.here() == ["b"])
    assert rig.control.losses() == [(A, "its key was revoked or replaced")]
    assert rig.control.losses() == []


class Waiter:
    """A thread that waits for news, again and again, and counts how often it came."""

    def __init__(self, rig: Rig) -> None:
        self.n_woken = 0
        self._rig = rig
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            # So long that a test in which nobody is woken fails.
            self._rig.control.wait_reports(60.0)
            self._rig.control.take_reports()
            self.n_woken += 1

    def woken(self, before: int) -> bool:
        return until(lambda: self.n_woken > before)

    def close(self, last: Dialler) -> None:
        self._stop.set()
        last.say(HAVE)
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_who_waits_is_woken_by_reports_and_by_what_becomes_of_agents(rig: Rig) -> None:
    b, _ = rig.join(B)
    waiter = Waiter(rig)
    try:
        assert waiter.woken(0)
        before = waiter.n_woken
        a, _ = rig.join(A)
        assert waiter.woken(before)
        before = waiter.n_woken
        a.say(HAVE)
        assert waiter.woken(before)
        assigned(rig, a, NEW)
        before = waiter.n_woken
        a.say(Ready(NEW, 1, 1, 0, 0.1))
        assert waiter.woken(before)
        before = waiter.n_woken
        rig.gate.revoke(A)
        assert waiter.woken(before)
    finally:
        waiter.close(b)


def test_waiting_ends_in_time_and_what_happened_before_is_not_missed(rig: Rig) -> None:
    a, _ = rig.join(A)
    rig.control.wait_reports(60.0)
    rig.control.wait_reports(0.0)
    a.say(hello("a"))
    a.hears()
    rig.control.wait_reports(60.0)
    assert rig.here() == ["a"]
