"""What the register of agents and the plan in force look like to people."""

import msgspec

from agent.ids import AgentName, Epoch, InstanceId, ModelId
from agent.messages import Heartbeat, Hello, Loading, Ready, Versions
from agent.share import AtomRange, LayerShare
from coordinator.membership import Agent, AgentState
from coordinator.plan import Member, Plan, Stage
from coordinator.status import AgentStatus, Status, agent_statuses, missing_text
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
    ready.heartbeat = Heartbeat(1, 1 << 29, 5, 7, Epoch(2), round_trip_s=0.00123)
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
                 "512 MiB / 1.0 GiB", "set aside 25 %", "c: no heartbeat for 3.6 s"):  # fmt: skip
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
