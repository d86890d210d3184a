"""What a request is answered, whatever happens to the plan that it is written by."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.ids import AgentName, Epoch, ModelId
from agent.share import AtomRange, LayerShare
from coordinator import keeper as keeper_module
from coordinator.admin_messages import Failed, Finished, Generate, Notice, Reply
from coordinator.cluster import Cluster
from coordinator.forecast import Forecast
from coordinator.inbox import Request
from coordinator.known_agent import AgentState
from coordinator.migration_events import Finished as MoveFinished
from coordinator.migration_events import Outcome
from coordinator.plan import Member, Plan, Stage
from coordinator.results import Result, Token
from coordinator.service import ENDING, Service
from coordinator.supervisor import Cordon, Drain, Undrain
from kernels.errors import AgentLostError, FaultyAgentError, PlanError, RemoteError
from kernels.layout import Geometry, WeightFormat

A, B = AgentName("a"), AgentName("b")
GEOMETRY = Geometry(64, 1, 8, 4, 8, 172, 512, WeightFormat.F32, 1e-5)
DONE = Result("", [7], [5], "length", cast("Any", None))


def plan_of(*names: AgentName) -> Plan:
    share = LayerShare(0, (AtomRange(0, 4),), (AtomRange(0, 6),))
    others = tuple(Member(name, ()) for name in names[1:])
    return Plan(ModelId("m"), (Stage(0, 1, (Member(names[0], (share,)), *others)),))


class House:
    """A cluster that installs whatever it is asked for; texts are written by `write`."""

    def __init__(self) -> None:
        self.directory = SimpleNamespace(geometry=GEOMETRY)
        self.tokenizer = None
        self.plan: Plan | None = None
        self.epoch = Epoch(0)
        self.move: Any = None
        self.is_moving = False
        self.ended: MoveFinished | None = None
        self.here = [A, B]
        self.n_looks = 0
        self.plans_fail: list[Exception] = []
        self.installer = SimpleNamespace(place="spread")
        self.mirrors = SimpleNamespace(view=lambda: None)
        self.control = self.moves = self
        self.interrupt = self.recover = lambda *_: None
        self.write: Any = lambda: iter([])

    def drain(self) -> None:
        pass

    def poll_move(self) -> MoveFinished | None:
        ended, self.ended = self.ended, None
        if ended is not None and ended.outcome is Outcome.BROKEN:
            self.plan = None
        return ended

    def abandon(self, reason: str) -> bool:
        return False

    def lose(self, name: AgentName, reason: str) -> None:
        if name in self.here:
            self.here.remove(name)

    def failed(self, epoch: Epoch) -> frozenset[AgentName]:
        return frozenset()

    def agents(self) -> list[Any]:
        self.n_looks += 1
        ready = AgentState.READY
        return [
            SimpleNamespace(
                name=name, epoch=self.epoch, state=ready, alive=True, heartbeat=None, ready=None
            )
            for name in self.here
        ]

    def agent_names(self) -> list[AgentName]:
        return list(self.here)

    def make_plan(self, names: Any) -> Plan:
        if self.plans_fail:
            raise self.plans_fail.pop(0)
        return plan_of(*names)

    def install(self, plan: Plan, end_texts: bool) -> None:
        self.plan, self.epoch = plan, Epoch(self.epoch + 1)

    def drop_plan(self, end_texts: bool, keep_rows: bool = False) -> None:
        self.plan = None

    def generate(self, *args: Any, **options: Any) -> Any:
        return Text(self.write())


class Text:
    def __init__(self, tokens: Iterator[Token]) -> None:
        self._tokens = tokens

    def __iter__(self) -> Iterator[Token]:
        return self._tokens

    def close(self) -> None:
        pass

    def result(self) -> Result:
        return DONE


class Day:
    """A service that has a plan in force and one request to serve."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(keeper_module, "placement_table", lambda _: "")
        self.house = House()
        self.service = Service(cast("Cluster", self.house), 1, list, lambda: None)
        self._until(lambda: self.service.desk.view.state == "ready")
        self.request = self.service.desk.submit(Generate("", prompt_ids=[5], max_tokens=1))

    def serve(self) -> Reply:
        """Serve the request, and return the last that its client is told."""
        request = self.service._inbox.take()
        assert request is self.request
        self.service._serve(request)
        while True:
            reply = self.request.next_reply(0.0)
            assert reply is not None
            if self.request.is_last(reply):
                return reply

    def _until(self, done: Any) -> None:
        for _ in range(2000):
            self.service._keeper.look()
            if done():
                return
            self.service._inbox.wait(0.005, for_requests=False)
        raise AssertionError("it does not get there")


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Day:
    return Day(monkeypatch)


def test_a_text_that_ends_when_a_move_breaks_is_complete(day: Day) -> None:
    def write() -> Iterator[Token]:
        day.house.ended = MoveFinished(Outcome.BROKEN, "agent 'b' was lost", B)
        yield Token(7, "")

    day.house.write = write
    reply = day.serve()
    assert isinstance(reply, Finished)
    assert reply.result is DONE
    assert reply.plan is not None
    assert day.house.plan is None


def test_an_interrupt_while_weights_are_loaded_is_told_to_who_waits_for_them(day: Day) -> None:
    def write() -> Iterator[Token]:
        yield Token(7, "")
        raise KeyboardInterrupt

    day.house.write = write
    with pytest.raises(KeyboardInterrupt):
        day.serve()
    replies = [reply for _ in range(3) if (reply := day.request.next_reply(0.0))]
    assert replies[-1] == Failed(ENDING)


def test_agents_are_looked_at_now_and_then_and_not_with_every_token(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "LOOK_S", 1000.0)

    def write() -> Iterator[Token]:
        for _ in range(50):
            yield Token(7, "")

    day.house.write, day.house.n_looks = write, 0
    assert isinstance(day.serve(), Finished)
    assert day.house.n_looks < 10


def test_a_plan_that_an_agent_leaves_while_it_is_made_is_made_again(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = day.house
    house.here.append(AgentName("c"))

    def make_plan(names: Any) -> Plan:
        if B in house.here and "c" not in house.here:
            house.here.remove(B)
            raise PlanError("plan names agent 'b', which is not here")
        return plan_of(*names)

    def write() -> Iterator[Token]:
        house.here.remove(AgentName("c"))
        why = AgentLostError("agent 'c' was lost", "c")
        cast("Any", house.recover)(why)
        yield Token(7, "")

    house.write = write
    day.service._keeper.look()
    monkeypatch.setattr(house, "make_plan", make_plan)
    assert isinstance(day.serve(), Finished)
    assert house.plan == plan_of(A)


def notices(request: Request) -> list[str]:
    """Return what a request's client was told besides its text."""
    told: list[str] = []
    while (reply := request.next_reply(0.0)) is not None:
        if isinstance(reply, Notice):
            told.append(reply.text)
        if request.is_last(reply):
            break
    return told


@pytest.fixture
def short_day(day: Day, monkeypatch: pytest.MonkeyPatch) -> Day:
    """A day on which `a` runs out of memory behind the first token of the first text."""
    short = [Forecast(A, 0, 100, 500)]
    monkeypatch.setattr(keeper_module, "short_agents", lambda *_: [short.pop()] if short else [])
    return day


@pytest.mark.parametrize(
    ("why", "told"),
    [
        (AgentLostError("the plan that the text was written by is gone"), "runs out of memory"),
        (AgentLostError("agent 'b' was lost", "b"), "agent 'b' was lost; "),
        (FaultyAgentError("agent 'b' sent inf", "b"), "agent 'b' sent inf; "),
    ],
)
def test_who_lost_its_plan_for_want_of_memory_is_told_so(
    short_day: Day, why: RemoteError, told: str
) -> None:
    def write() -> Iterator[Token]:
        yield Token(7, "")
        cast("Any", short_day.house.recover)(why)

    short_day.house.write = write
    request = short_day.service._inbox.take()
    assert request is not None
    short_day.service._serve(request)
    (notice,) = notices(request)
    assert told in notice


def test_a_text_that_ended_before_it_noticed_leaves_no_shortage_behind(short_day: Day) -> None:
    house, service = short_day.house, short_day.service
    house.write = lambda: iter([Token(7, "")])
    assert isinstance(short_day.serve(), Finished)
    assert house.epoch == 2

    def write() -> Iterator[Token]:
        cast("Any", house.recover)(AgentLostError("no plan is in force"))
        yield Token(7, "")

    house.write = write
    service.desk.submit(Generate("", prompt_ids=[5], max_tokens=1))
    request = service._inbox.take()
    assert request is not None
    service._serve(request)
    (notice,) = notices(request)
    assert notice.startswith("no plan is in force; ")


def test_a_client_that_leaves_while_its_rows_are_restored_is_no_failed_plan(day: Day) -> None:
    house, install, n_interrupted = day.house, day.house.install, 0

    def restore(plan: Plan, end_texts: bool) -> None:
        nonlocal n_interrupted
        install(plan, end_texts)
        house.install = install  # type: ignore[method-assign]
        n_interrupted += 1
        day.request.give_up("its client has left")
        cast("Any", house.interrupt)()

    def write() -> Iterator[Token]:
        yield Token(7, "")
        house.install = restore  # type: ignore[method-assign]
        cast("Any", house.recover)(AgentLostError("the plan is gone"))
        yield Token(8, "")

    house.write = write
    day.serve()
    assert n_interrupted == 1
    # Nothing keeps the next one waiting.
    view = day.service.desk.view
    assert (view.problem, view.state) == ("", "ready")
    assert house.plan == plan_of(A, B)
    assert house.epoch == 3, "what was interrupted is not taken for a plan in force"


def test_an_agent_that_a_move_leads_to_is_not_free_of_work(day: Day) -> None:
    house, keeper, desk = day.house, day.service._keeper, day.service.desk
    c = AgentName("c")
    house.here.append(c)
    house.move = SimpleNamespace(agents=frozenset({A, B, c}), view=lambda: None)
    keeper.happen(Drain(c))
    assert desk.holds(c)
    house.move = None
    keeper.look()
    assert not desk.holds(c)


class Leading:
    """A migration that leads to `b`, and a house in which it is under way while a text is written.

    Attributes:
        reasons: why it was called off.
        n_begun: moves that were asked for since.
    """

    agents = targets = frozenset({B})
    has_moved = False

    def __init__(self, day: Day) -> None:
        self.reasons: list[str] = []
        self.n_begun = 0
        self._house: Any = day.house
        self._house.move, self._house.is_moving = self, True
        self._house.abandon, self._house.begin_move = self._abandon, self._begin

    def view(self) -> None:
        return None

    def _abandon(self, reason: str) -> bool:
        self._house.move, self._house.is_moving = None, False
        self.reasons.append(reason)
        return True

    def _begin(self, plan: Plan) -> None:
        self.n_begun += 1


@pytest.mark.parametrize(("wish", "word"), [(Drain(B), "drained"), (Cordon(B), "cordoned")])
def test_a_wish_against_a_move_calls_it_off(day: Day, wish: Drain | Cordon, word: str) -> None:
    leading = Leading(day)
    day.service._inbox.post(wish)
    day.service._keeper.look()
    assert leading.reasons == [f"agent 'b', to which it leads, is {word}"]
    assert B not in day.service._supervisor.usable


def test_a_wish_against_a_move_that_a_text_has_followed_waits_for_it(day: Day) -> None:
    leading = Leading(day)
    leading.has_moved = True
    day.service._inbox.post(Drain(B))
    day.service._keeper.look()
    assert leading.reasons == []
    leading.has_moved = False
    day.service._inbox.post(Drain(A))  # it leads to another one
    day.service._inbox.post(Undrain(B))
    day.service._keeper.look()
    assert leading.reasons == []


def test_a_move_that_cannot_begin_for_whatever_reason_is_no_end(day: Day) -> None:
    house, n_tried = day.house, 0

    def begin_move(plan: Plan) -> None:
        nonlocal n_tried
        n_tried += 1
        raise KeyError("nobody thought of that")

    def write() -> Iterator[Token]:
        house.here.append(AgentName("c"))
        for _ in range(400):
            day.service._inbox.wait(0.005, for_requests=False)
            if n_tried:
                return
            yield Token(7, "")

    house.begin_move = begin_move  # type: ignore[attr-defined]
    house.write = write
    assert isinstance(day.serve(), Finished)
    assert n_tried == 1
