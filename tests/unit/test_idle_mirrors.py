"""Mirrors that nobody looks at for a while, and mirrors while no text is written."""

from typing import cast

import pytest

from agent.ids import AgentName, Epoch, KvId
from agent.migration_messages import Begun, Have, MoveFailed
from coordinator import mirrors as module
from coordinator.forecast import Forecast
from coordinator.known_agent import Agent
from coordinator.migration import Migration, State
from coordinator.migration_events import AgentReady, AtBoundary, Event, Opened, Reported, Tick
from coordinator.mirror import PACE
from coordinator.mirroring import mirror_parts
from coordinator.plans import Plans
from tests.unit.mirror_house import GROUP_BYTES, WEIGHTS_BYTES, Clock, MirrorHouse
from tests.unit.move_house import ROW, RUN, A, B, C, Carrier, plan

BEFORE, AFTER = plan(a=2, b=1, c=1), plan(a=2, b=2)
ALL = "a on b, b on c, c on a"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def house() -> MirrorHouse:
    return MirrorHouse(BEFORE, AFTER)


def holders(h: MirrorHouse) -> str:
    view = h.mirrors.view()
    assert view is not None
    return view.holders


class Mirrored:
    """The state machine of a mirror of one text, all of whose targets have begun."""

    def __init__(self) -> None:
        self.now_s = 0.0
        parts = mirror_parts(BEFORE, {A: B, B: C, C: A})
        self.m = Migration(RUN, Epoch(1), Epoch(2), parts, 0.0, PACE, mirrors=True)
        self.m.begin([Opened(KvId(1), 10, 100)], 0.0)
        begun = [
            Reported(n, Begun(RUN, 2, arrives)) for n in (A, B, C) for arrives in (True, False)
        ]
        self.tell(*map(AgentReady, (A, B, C)), *begun)

    def tell(self, *events: Event) -> None:
        for event in events:
            self.m.on_event(event, self.now_s)

    def have(self, n_tokens: int) -> None:
        self.tell(*(Reported(n, Have(RUN, 2, 1, 0, n_tokens)) for n in (A, B, C)))

    def after(self, seconds: float, *events: Event) -> State:
        self.now_s += seconds
        self.tell(*events)
        return self.m.state


def test_what_nobody_read_is_no_silence() -> None:
    m = Mirrored()
    # Nothing is lacking, nobody looks, then there is something to be copied.
    m.have(10)
    assert m.after(100.0, AtBoundary(KvId(1), 20)) is State.PREPARING
    assert m.after(0.0, Tick()) is State.PREPARING
    # Something is lacking, and a step takes its time: the reports are read behind it.
    assert m.after(100.0, AtBoundary(KvId(1), 21)) is State.PREPARING
    m.have(15)
    assert m.after(0.0, Tick()) is State.PREPARING
    # However often that happens.
    for n_tokens in range(22, 40):
        assert m.after(100.0, AtBoundary(KvId(1), n_tokens), Tick()) is State.PREPARING


@pytest.mark.parametrize(("step_s", "n_looks"), [(0.5, 60), (5.0, 30)])
def test_who_says_nothing_while_somebody_looks_is_given_up(step_s: float, n_looks: int) -> None:
    m = Mirrored()
    for _ in range(n_looks - 1):
        assert m.after(step_s, Tick()) is State.PREPARING
    assert m.after(step_s, Tick()) is State.ENDING


def test_a_mirror_outlasts_a_pause_between_texts(clock: Clock) -> None:
    h = house()
    text = h.text(1)
    h.write(text, 10)
    text.close()
    clock.now_s += 100.0
    h.write(h.text(2), 10)
    assert len(h.board.mirrors_begun()) == 1
    assert holders(h) == ALL


def test_a_mirror_outlasts_a_step_that_takes_long(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = house()
    text = h.text(1)
    h.write(text, 10)

    def step(*_: object) -> list[object]:
        clock.now_s += 100.0
        return []

    monkeypatch.setattr(cast("Carrier", text.engine), "step", step)
    h.write(text, 10)
    assert len(h.board.mirrors_begun()) == 1
    assert holders(h) == ALL


def test_who_failed_is_asked_again_after_a_while(clock: Clock) -> None:
    h = house()
    h.board.memory_bytes = WEIGHTS_BYTES + 3 * GROUP_BYTES
    h.board.silent = {B}
    text = h.text(1)
    h.write(text, 2)
    (epoch,) = h.board.mirrors_begun()
    assert holders(h) == ALL
    h.board.reports.append((B, MoveFailed(RUN, epoch, "no memory")))
    h.board.silent = set()
    h.write(text, 1)
    clock.now_s += module.RETRY_S
    h.write(text, 1)
    assert holders(h) == "a on c, b on a"
    clock.now_s += module.REFUSED_S
    # Not in the middle of a text, whose rows would have to be copied again.
    h.mirrors.look()
    h.write(text, 1)
    assert holders(h) == "a on c, b on a"
    text.close()
    h.mirrors.look()
    h.write(h.text(2), 1)
    assert holders(h) == ALL


def test_while_idle_a_mirror_gives_way_too(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    left = {"bytes": 1000}

    def forecast_of(agent: Agent) -> Forecast:
        return Forecast(AgentName(agent.name), left["bytes"], 100, 500)

    monkeypatch.setattr(module, "forecast_of", forecast_of)
    h = house()
    text = h.text(1)
    h.write(text, 10)
    text.close()
    (mirror,) = h.board.mirrors_begun()
    plans = Plans.__new__(Plans)
    plans.moves, plans.mirrors = h.moves, h.mirrors
    clock.now_s += 1.0
    plans.poll_move()
    assert h.board.freed(mirror) == set()
    # Enough for the plan, but for half of a reserve that the mirror would use.
    left["bytes"] = 500 - 50 + GROUP_BYTES
    clock.now_s += 1.0
    plans.poll_move()
    assert h.board.freed(mirror) == {A, B, C}
    # None begins before there is a text again.
    left["bytes"] = 1000
    clock.now_s += module.RETRY_S
    plans.poll_move()
    assert h.board.mirrors_begun() == [mirror]
    h.write(h.text(2), 1)
    assert len(h.board.mirrors_begun()) == 2


def test_while_a_text_is_open_only_its_steps_look(clock: Clock) -> None:
    h = house()
    text = h.text(1)
    text.step(ROW, 0, ())
    h.mirrors.look()
    assert h.board.mirrors_begun() == []
