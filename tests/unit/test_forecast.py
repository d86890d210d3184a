"""What agents will have left, what they are offered for, and whose plan must change."""

import msgspec
import pytest

from agent.ids import AgentName, Epoch, InstanceId, ModelId
from agent.messages import Heartbeat, Hello, Ready
from agent.share import AtomRange, LayerShare
from agent.versions import our_versions
from coordinator.forecast import forecast_of, offered_bytes, scarce_after, short_agents
from coordinator.membership import Agent, AgentState, Coming
from coordinator.plan import Member, Plan, Stage
from coordinator.planner.cost import Offer, PlanRequest, atom_sizes
from coordinator.planner.room import check_room
from kernels.errors import ResourceError
from kernels.layout import Geometry, WeightFormat

MIB = 1 << 20
GEOMETRY = Geometry(512, 2, 8, 4, 64, 1376, 8192, WeightFormat.Q8, 1e-5)
REQUEST = PlanRequest(2048, 2048, n_contexts=1)
A, B = AgentName("a"), AgentName("b")


def agent(
    budget_mib: int | None, reserve_mib: int = 0, held_mib: int = 0, offered_mib: int = 1000
) -> Agent:
    hello = Hello(A, InstanceId("x"), our_versions(), 4, 4, offered_mib * MIB, 1e9)
    found = Agent(b"link", hello, 0.0, AgentState.READY, Epoch(1))
    if budget_mib is not None:
        found.heartbeat = Heartbeat(
            1, 0, 0, budget_bytes=budget_mib * MIB, reserve_bytes=reserve_mib * MIB
        )
    if held_mib:
        # Two thirds of it KV.
        kv_bytes = 2 * held_mib * MIB // 3
        found.ready = Ready(Epoch(1), held_mib * MIB - kv_bytes, kv_bytes, 0, 0.1)
    return found


def left_mib(found: Agent) -> float | None:
    forecast = forecast_of(found)
    return None if forecast is None else forecast.left_bytes / MIB


def test_what_is_left_counts_the_reserve_and_all_of_the_pool() -> None:
    assert left_mib(agent(900, 100, 300)) == 700
    assert left_mib(agent(200, 100, 450)) == -150
    assert left_mib(agent(900, 100)) == 1000
    assert left_mib(agent(None, held_mib=300)) is None
    gone = agent(900, 100, 300)
    gone.state = AgentState.LOST
    assert left_mib(gone) is None


@pytest.mark.parametrize(
    ("budget_mib", "held_mib", "is_short", "offered_mib"),
    [
        (900, 300, False, 900),  # room for more
        (2000, 300, False, 1000),  # never more than it offered when it came
        (280, 300, False, 300),  # something else took a little: what it holds it may keep
        (250, 300, False, 300),
        (249, 300, True, 249),  # more than half of the reserve is used up
        (0, 300, True, 0),
        (0, 0, False, 0),  # holds nothing, so nothing has to change
    ],
)
def test_half_of_the_reserve_may_be_used_before_a_plan_changes(
    budget_mib: int, held_mib: int, is_short: bool, offered_mib: int
) -> None:
    found = agent(budget_mib, 100, held_mib)
    assert [f.agent for f in short_agents([found], {A})] == ([A] if is_short else [])
    assert not short_agents([found], {B})
    assert offered_bytes(found) == offered_mib * MIB


@pytest.mark.parametrize(
    ("budget_mib", "reserve_mib", "is_critical"),
    # On a board that is played, without reserve, nobody is killed.
    [(225, 100, False), (224, 100, True), (299, 0, False), (0, 0, False)],
)
def test_once_little_is_left_of_the_reserve_there_is_no_time_to_copy(
    budget_mib: int, reserve_mib: int, is_critical: bool
) -> None:
    (short,) = short_agents([agent(budget_mib, reserve_mib, 300)], {A})
    assert short.is_critical == is_critical


def beat(found: Agent, budget_mib: int) -> None:
    """Take in a heartbeat, as the register does."""
    heartbeat = found.heartbeat
    assert heartbeat is not None
    found.heartbeat = msgspec.structs.replace(heartbeat, budget_bytes=budget_mib * MIB)
    found.scarce_bytes = scarce_after(found)


def test_an_agent_that_was_short_keeps_some_free_until_it_has_clearly_more() -> None:
    found = agent(900, 100, 300)
    beat(found, 280)
    assert found.scarce_bytes is None  # it may keep what it holds
    beat(found, 240)
    assert found.scarce_bytes == 240 * MIB
    assert offered_bytes(found) == 140 * MIB
    found.ready = None  # all was moved off it
    for budget_mib, offered_mib, at_most_mib in [(240, 140, 240), (439, 339, 439), (60, 0, 60)]:
        beat(found, budget_mib)
        assert offered_bytes(found) == offered_mib * MIB
        assert offered_bytes(found, to_the_last=True) == at_most_mib * MIB
    beat(found, 440)  # its reserve is free twice more
    assert found.scarce_bytes is None
    assert offered_bytes(found) == 440 * MIB
    beat(found, 240)
    assert offered_bytes(found) == 240 * MIB


def test_a_played_board_without_a_reserve_keeps_a_tenth() -> None:
    found = agent(100, 0, 200)
    beat(found, 100)
    found.ready = None
    assert offered_bytes(found) == 90 * MIB
    beat(found, 119)
    assert offered_bytes(found) < 119 * MIB
    beat(found, 125)
    assert offered_bytes(found) == 125 * MIB


def test_while_a_plan_comes_what_is_there_counts() -> None:
    found = agent(400, 100, 300)
    found.heartbeat = msgspec.structs.replace(found.heartbeat, unmapped_bytes=460 * MIB)
    assert left_mib(found) == 200
    found.coming = Coming(Epoch(2))
    assert left_mib(found) == 40
    assert short_agents([found], {A})


def test_without_a_heartbeat_an_offer_is_what_it_said_when_it_came() -> None:
    assert offered_bytes(agent(None, held_mib=300)) == 1000 * MIB


def test_a_shortage_names_agent_and_bytes() -> None:
    (short,) = short_agents([agent(10, 64, 60)], {A})
    assert str(short) == (
        f"agent 'a' runs out of memory: it holds {60 * MIB} bytes of weights and KV and will have "
        f"{14 * MIB} bytes left, of a reserve of {64 * MIB}"
    )


def plan(*n_groups: int) -> Plan:
    """Agents a, b, ... with so many head groups of each layer; the first has all the rest."""
    members, first = [], 0
    for i, count in enumerate(n_groups):
        columns = (AtomRange(0, GEOMETRY.n_column_atoms),) if i == 0 else ()
        groups = (AtomRange(first, count),) if count else ()
        layers = tuple(LayerShare(layer, groups, columns) for layer in range(2))
        vocab = (AtomRange(0, GEOMETRY.n_vocab_atoms),) if i == 0 else ()
        members.append(Member(AgentName("ab"[i]), layers if groups or columns else (), vocab))
        first += count
    return Plan(ModelId("m"), (Stage(0, 2, tuple(members)),))


def test_both_pools_must_fit_while_a_plan_takes_over() -> None:
    sizes = atom_sizes(GEOMETRY, REQUEST)
    groups = 2 * 3 * sizes.group + 2 * sizes.layer_norms
    # b had one group of each layer and gets two more: weights once, a pool for each plan.
    needed = groups + 2 * (1 + 3) * sizes.group_pool
    before, after = plan(3, 1), plan(1, 3)
    enough, less = (Offer(B, needed - missing, 1e9) for missing in (0, 1))
    check_room(before, after, GEOMETRY, [enough], REQUEST)
    with pytest.raises(ResourceError, match=f"agent 'b' would need {needed} bytes .* {needed - 1}"):
        check_room(before, after, GEOMETRY, [less], REQUEST)
    # Who keeps its pool is not looked at; nobody else, no trouble.
    check_room(before, after, GEOMETRY, [], REQUEST)
