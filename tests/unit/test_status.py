"""What the register of agents and the plan in force look like to people."""

import msgspec
import pytest

from agent.ids import AgentName, Epoch, InstanceId, ModelId
from agent.messages import Heartbeat, Hello, Loading, Ready, Versions
from agent.share import AtomRange, LayerShare
from coordinator.membership import Agent, AgentState, Coming
from coordinator.plan import Member, Plan, Stage
from coordinator.status import (
    AgentStatus,
    MirrorStatus,
    MoveStatus,
    Status,
    agent_statuses,
    missing_text,
)
from coordinator.status_verb import describe
from weights.demo import demo_path
from weights.directory import ModelDirectory

VERSIONS = Versions("0.1.0", 1, 1, 1)
A, B, C, D, E = (AgentName(name) for name in "abcde")


def agent(name: AgentName, state: AgentState, epoch: int = 0) -> Agent:
    hello = Hello(name, InstanceId("x"), VERSIONS, 4, 4, 1 << 30, 1e9, "aarch64")
    return Agent(b"link", hello, 0.0, state, Epoch(epoch))


def statuses() -> list[AgentStatus]:
    with ModelDirectory.open(demo_path()) as directory:
        geometry = directory.geometry
    ready = agent(A, AgentState.READY, 2)
    ready.ready = Ready(Epoch(2), 1000, 2000, 0, 0.1)
    ready.heartbeat = Heartbeat(
        1, 1 << 29, 5, 7, Epoch(2), round_trip_s=0.00123,
        budget_bytes=(1 << 29) + 3000, reserve_bytes=1 << 26,
    )  # fmt: skip
    loading = agent(B, AgentState.LOADING, 2)
    loading.loading = Loading(Epoch(2), 30, 120)
    lost = agent(C, AgentState.LOST)
    lost.reason = "no heartbeat for 3.6 s"
    lost.heartbeat = Heartbeat(1, 1 << 29, 5, round_trip_s=0.5)
    share = LayerShare(0, (AtomRange(0, 2),), (AtomRange(0, 3),))
    member = Member(A, (share,), (AtomRange(geometry.n_vocab_atoms - 1, 1),))
    plan = Plan(ModelId("m"), (Stage(0, 1, (member, Member(B))),))
    agents = [ready, loading, lost, agent(D, AgentState.IDLE)]
    return agent_statuses(agents, plan, Epoch(2), geometry, {D, E}, {B})


def test_a_cordoned_agent_is_shown_as_such_unless_more_is_to_be_said() -> None:
    with ModelDirectory.open(demo_path()) as directory:
        geometry = directory.geometry
    agents = [agent(A, AgentState.READY, 2), agent(B, AgentState.LOST), agent(C, AgentState.IDLE)]
    found = agent_statuses(agents, None, Epoch(2), geometry, {C}, set(), cordoned={A, B, C, D})
    assert [status.state for status in found] == ["cordoned", "lost", "drained", "cordoned"]


def test_each_agent_has_a_state() -> None:
    found = {status.name: status for status in statuses()}
    assert [found[n].state for n in (A, B, C, D, E)] == [
        "ready", "set aside", "lost", "drained", "drained",
    ]  # fmt: skip
    assert found[B].loading_percent == 25.0
    assert found[C].reason == "no heartbeat for 3.6 s"


def test_what_a_member_holds_is_counted() -> None:
    a = statuses()[0]
    assert (a.n_head_groups, a.n_columns) == (2, 96)
    # The last vocabulary atom holds what is left.
    assert 0 < a.n_vocab_rows <= 128
    assert (a.weights_bytes, a.kv_bytes, a.memory_free_bytes) == (1000, 2000, 1 << 29)


def test_free_pages_are_those_of_the_plan_it_holds() -> None:
    assert [status.kv_free_pages for status in statuses()] == [7, None, None, None, None]
    before = agent(A, AgentState.READY, 2)
    before.ready = Ready(Epoch(2), 1000, 2000, 0, 0.1)
    before.heartbeat = Heartbeat(1, 1 << 29, 5, kv_free_pages=3, epoch=Epoch(1))
    with ModelDirectory.open(demo_path()) as directory:
        (found,) = agent_statuses([before], None, Epoch(2), directory.geometry, set(), set())
    assert found.kv_free_pages is None


def test_the_table_shows_it_all() -> None:
    status = Status(
        "ready", "demo", "0123456789abcdef", "ff", 2, 42, 7070, 93784.0, 1, 5, 1, 2, 3,
        "agent 'b' cannot load its part", "0.1.0", statuses(),
    )  # fmt: skip
    text = describe(status)
    for part in ("model demo", "pid 42", "up 1 d 2 h", "5 served, 1 failed, 2 waiting",
                 "dropped or refused: hot frames 3\n", "1.23 ms", "problem: agent 'b'",
                 "512 MiB, 576 MiB / 1.0 GiB", "set aside 25 %",
                 "c: no heartbeat for 3.6 s"):  # fmt: skip
        assert part in text
    assert "4 here, 1 needed" in text
    # Whoever is gone has no link.
    assert "500.00 ms" not in text


def test_the_table_shows_what_was_dropped_and_refused_if_anything_was() -> None:
    status = Status(
        "ready", "demo", "0123456789abcdef", "ff", 2, 42, 7070, 5.0, 1, 0, 0, 0, 0, "", "0.1.0", []
    )  # fmt: skip
    assert "dropped" not in describe(status)
    counters = ("n_messages_dropped", "n_pulls_dropped", "n_pulls_refused", "n_keys_refused")
    changes = dict(zip(counters, range(2, 6), strict=True))
    text = describe(msgspec.structs.replace(status, **changes))
    assert text.endswith(
        "dropped or refused: control messages 2, bulk messages 3, pulls without a grant 4, "
        "handshakes with unknown keys 5"
    )


def test_who_is_missing() -> None:
    assert missing_text(2, [], {}) == "2 more agents: none is here"
    assert missing_text(1, [A], {}) == "1 more agent: here is a"
    absent = {C: "is not here", B: "is drained"}
    assert missing_text(1, [A, D], absent) == (
        "1 more agent: here are a, d; b is drained; c is not here"
    )


def status_of(agents: list[Agent], **changes: object) -> Status:
    with ModelDirectory.open(demo_path()) as directory:
        found = agent_statuses(agents, None, Epoch(2), directory.geometry, set(), set())
    status = Status(
        "ready", "demo", "0123456789abcdef", "ff", 2, 42, 7070, 5.0, 1, 0, 0, 0, 0, "", "0.1.0",
        found,
    )  # fmt: skip
    return msgspec.structs.replace(status, **changes)


def test_an_agent_that_gets_ready_for_a_plan_to_come_serves_and_says_how_far_it_is() -> None:
    agents = [agent(name, AgentState.READY, 2) for name in (A, B, C)]
    agents[0].coming = Coming(Epoch(4), Loading(Epoch(4), 30, 120))
    agents[1].coming = Coming(Epoch(4), ready=Ready(Epoch(4), 7, 8, 0, 0.1))
    agents.append(agent(D, AgentState.READY, 2))
    agents[3].coming = Coming(Epoch(4))
    status = status_of(agents)
    found = [(a.state, a.loading_percent, a.coming_epoch, a.coming_percent) for a in status.agents]
    assert found == [
        ("ready", None, 4, 25.0), ("ready", None, 4, 100.0), ("ready", None, 0, None),
        ("ready", None, 4, 0.0),
    ]  # fmt: skip
    text = describe(status)
    assert text.count("ready, epoch 4 25 %") == text.count("ready, epoch 4 100 %") == 1
    assert "migration" not in text


def test_a_migration_under_way_is_one_line_and_named_in_json() -> None:
    view = MoveStatus(4, 2, 12, 380, 512, "copying")
    status = status_of([], move=view)
    line = "migration from epoch 2 to 4: copying, 12 head groups, 380 of 512 tokens there"
    assert line in describe(status).splitlines()
    assert msgspec.json.decode(msgspec.json.encode(status))["move"] == msgspec.structs.asdict(view)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(status), type=Status)
    assert again == status


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (MirrorStatus(3, "a on b, b on a", ""), "mirror: 3 tokens behind, a on b, b on a"),
        (
            MirrorStatus(0, "a on b", "no room for that of b"),
            "mirror: 0 tokens behind, a on b; no room for that of b",
        ),
        (MirrorStatus(None, "nobody", "no text is written"), "mirror: none, no text is written"),
    ],
)
def test_a_mirror_is_shown(view: MirrorStatus, line: str) -> None:
    status = status_of([], mirror=view)
    assert line in describe(status).splitlines()
    assert "mirror" not in describe(status_of([]))
