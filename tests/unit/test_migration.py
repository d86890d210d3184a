"""What a change of plan moves, and which epoch a text is written in at any moment."""

from agent.ids import AgentName, Epoch, KvId, ModelId, RunId
from agent.migration_messages import Begun, Depart, Group, Have, MoveEnd, MoveEnded, Share, Want
from agent.share import AtomRange, LayerShare
from coordinator.migration import Migration, Pace, State
from coordinator.migration_events import (
    AgentLost,
    AgentReady,
    AgentRelinked,
    Assign,
    AtBoundary,
    Commit,
    Event,
    Finished,
    Hold,
    Opened,
    Outcome,
    Reported,
    Send,
    Stepping,
    Tick,
)
from coordinator.migration_parts import MoveParts, move_parts
from coordinator.plan import Member, Plan, Stage

RUN, OLD, NEW = RunId(5), Epoch(8), Epoch(9)
A, B, C = AgentName("a"), AgentName("b"), AgentName("c")
TEXT = KvId(1)
PARTS = MoveParts(
    frozenset({A, C}), frozenset({A, B, C}), frozenset({C}),
    (Share(0, "a", "a", (Group(0, 0),)), Share(1, "a", "b", (Group(0, 1),))),
)  # fmt: skip


def member(name: AgentName, *groups: tuple[int, int], columns: int = 0) -> Member:
    """Return a member that holds (first, count) groups of layer 0 and 1."""
    ranges = tuple(AtomRange(*g) for g in groups)
    held = (AtomRange(0, columns),) if columns else ()
    return Member(name, tuple(LayerShare(layer, ranges, held) for layer in range(2)))


def plan(*members: Member) -> Plan:
    return Plan(ModelId("m"), (Stage(0, 2, members),))


def test_shares_name_every_group_of_each_changed_member_by_its_holder() -> None:
    before = plan(member(A, (0, 3)), member(B, (3, 1)), member(C, (4, 1)))
    # The same atoms as two ranges are the same atoms.
    after = plan(member(A, (0, 1), (2, 1)), member(B, (1, 1), (3, 1)), member(C, (4, 1)))
    parts = move_parts(before, after)
    assert (parts.kept, parts.targets, parts.sources) == ({C}, {A, B}, {A})
    groups = {(s.source, s.target): [tuple(g.group for g in s.groups)] for s in parts.shares}
    assert groups == {("a", "a"): [(0, 2, 0, 2)], ("a", "b"): [(1, 1)], ("b", "b"): [(3, 3)]}
    assert [s.number for s in parts.shares] == [0, 1, 2]
    assert parts.moved_groups() == 2
    same = move_parts(before, before)
    assert (same.kept, same.shares) == ({A, B, C}, ())


def test_other_columns_need_a_member_of_their_own() -> None:
    parts = move_parts(plan(member(A, (0, 2), columns=1)), plan(member(A, (0, 2), columns=2)))
    assert parts.targets == {A}
    assert [(s.local, len(s.groups)) for s in parts.shares] == [(True, 4)]
    assert not parts.sources


class Course:
    """A migration with one text, and what it said last."""

    def __init__(self, n_tokens: int = 100) -> None:
        self.now_s = 0.0
        self.m = Migration(RUN, OLD, NEW, PARTS, self.now_s, Pace())
        self.said = self.m.begin([Opened(TEXT, n_tokens, 200)], self.now_s)

    def tell(self, *events: Event) -> list[object]:
        self.said = [a for event in events for a in self.m.on_event(event, self.now_s)]
        return [*self.said]

    def ready(self) -> None:
        self.tell(AgentReady(A), AgentReady(B))
        begun = [Reported(n, Begun(RUN, NEW, True)) for n in (A, B)]
        self.tell(*begun, Reported(A, Begun(RUN, NEW, False)))

    def have(self, n_tokens: int, *names: AgentName) -> list[object]:
        return self.tell(*(Reported(n, Have(RUN, NEW, TEXT, 0, n_tokens)) for n in names))


def wants(said: list[object]) -> list[tuple[str, int, bool]]:
    return [
        (a.name, a.message.n_tokens, a.message.urgent)
        for a in said
        if isinstance(a, Send) and isinstance(a.message, Want)
    ]


def test_the_course_of_one_text() -> None:
    c = Course()
    # Whoever only gives has nothing to get ready but its link.
    assert c.said[:2] == [Assign(A), Assign(B)]
    assert [type(a.message) for a in c.said[2:] if isinstance(a, Send)] == [Depart]
    assert {a.name for a in c.said[2:] if isinstance(a, Send)} == {A}
    c.ready()
    c.tell(Stepping(TEXT))
    c.have(100, A)
    assert c.m.state is State.PREPARING
    c.have(97, B)
    assert c.m.state is State.SWITCHING
    assert (c.m.epoch_of(TEXT), c.m.epoch_of(KvId(2))) == (OLD, NEW)
    assert c.m.may_step(TEXT)
    said = c.tell(AtBoundary(TEXT, 101))
    assert said == [Hold(TEXT), *said[1:]]
    assert wants(said) == [("a", 101, True), ("b", 101, True)]
    assert not c.m.may_step(TEXT)
    assert c.have(101, A) == []
    said = c.have(101, B)
    assert said[0] == Commit(TEXT, (A,))
    assert [a.name for a in said[1:] if isinstance(a, Send)] == [A, B, C]
    assert said[1] == Send(A, MoveEnd(RUN, NEW, OLD))
    assert c.m.may_step(TEXT)
    assert c.m.epoch_of(TEXT) == NEW
    said = c.tell(*(Reported(n, MoveEnded(RUN, NEW)) for n in (A, B, C)))
    assert said == [Finished(Outcome.MOVED, "")]


def test_reports_of_other_migrations_and_runs_count_for_nothing() -> None:
    c = Course()
    c.ready()
    for run_id, epoch in ((RUN, OLD), (RUN + 1, NEW)):
        c.tell(*(Reported(n, Have(run_id, epoch, TEXT, 0, 100)) for n in (A, B)))
    c.tell(*(Reported(n, Have(RUN, NEW, TEXT, 1, 100)) for n in (A, B)))
    assert c.m.state is State.PREPARING
    assert c.m.progress_tokens == (0, 100)
    c.tell(AgentLost(AgentName("stranger"), "left"))
    assert c.m.state is State.PREPARING


def test_deadlines_name_who_was_last() -> None:
    c = Course()
    c.now_s = 600.0
    c.tell(Tick())
    c.now_s = 611.0
    (end,) = c.tell(Tick())
    assert end == Finished(Outcome.ABORTED, "not prepared within 600 s", A, frozenset({A, B, C}))
    c = Course()
    c.ready()
    c.have(100, A)
    c.now_s = 46.0
    (first, *_) = c.tell(Tick())
    assert first == Send(A, MoveEnd(RUN, NEW, NEW))
    assert c.m.epoch_of(KvId(7)) == OLD
    (end,) = c.tell(*(Reported(n, MoveEnded(RUN, NEW)) for n in (A, B, C)))
    assert end == Finished(Outcome.ABORTED, "agent 'b' made no progress in 45 s", B)


def test_orders_are_sent_again_until_answered_and_to_who_comes_back() -> None:
    c = Course()
    c.ready()
    assert c.tell(Tick()) == []
    assert wants(c.tell(AgentRelinked(B))) == [("b", 100, False)]
    c.have(100, A)
    c.now_s = 1.0
    assert wants(c.tell(Tick())) == [("b", 100, False)]
