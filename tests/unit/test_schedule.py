import random

from agent.frames import Phase
from agent.ids import AgentName, Epoch, ModelId, RunId
from agent.share import AtomRange, LayerShare
from coordinator.assign import assignments, largest_reply_bytes
from coordinator.plan import Member, Plan, Stage
from coordinator.random_plan import random_plan
from coordinator.schedule import make_schedule
from kernels.layout import Geometry, WeightFormat

GEOMETRY = Geometry(64, 2, 8, 4, 8, 172, 512, WeightFormat.F32, 1e-5)
EVERYTHING = tuple(LayerShare(i, (AtomRange(0, 4),), (AtomRange(0, 6),)) for i in range(2))


def plan_of(*stages: Stage) -> Plan:
    return Plan(ModelId("0" * 32), stages)


def test_a_lone_member_is_asked_once_for_everything() -> None:
    plan = plan_of(Stage(0, 2, (Member(AgentName("a"), EVERYTHING, (AtomRange(0, 4),)),)))
    (only,) = make_schedule(plan, GEOMETRY)
    assert only.phase == Phase.STAGE
    assert only.ranks == (0,)
    assert only.vocab_after


def test_members_without_atoms_of_a_phase_are_left_out() -> None:
    heads = tuple(LayerShare(i, (AtomRange(0, 4),)) for i in range(2))
    columns = tuple(LayerShare(i, (), (AtomRange(0, 6),)) for i in range(2))
    members = (
        Member(AgentName("a"), heads),
        Member(AgentName("b"), columns, (AtomRange(0, 4),)),
    )
    schedule = make_schedule(plan_of(Stage(0, 2, members)), GEOMETRY)
    assert [(d.phase, d.layer, d.ranks) for d in schedule] == [
        (Phase.ATTENTION, 0, (0,)),
        (Phase.MLP, 0, (1,)),
        (Phase.ATTENTION, 1, (0,)),
        (Phase.MLP, 1, (1,)),
        (Phase.VOCAB, 1, (1,)),
    ]


def test_a_ring_of_lone_stages_ends_with_the_vocabulary_of_whoever_holds_it() -> None:
    plan = plan_of(
        Stage(0, 1, (Member(AgentName("a"), EVERYTHING[:1], (AtomRange(0, 4),)),)),
        Stage(1, 1, (Member(AgentName("b"), EVERYTHING[1:]),)),
    )
    schedule = make_schedule(plan, GEOMETRY)
    assert [(d.phase, d.layer, d.ranks, d.vocab_after) for d in schedule] == [
        (Phase.STAGE, 0, (0,), False),
        (Phase.STAGE, 1, (1,), False),
        (Phase.VOCAB, 1, (0,), False),
    ]


def test_assignments_list_every_layer_of_the_stage_and_count_ranks_over_stages() -> None:
    names = [AgentName(f"a{i}") for i in range(5)]
    for seed in range(20):
        plan = random_plan(random.Random(seed), ModelId("0" * 32), GEOMETRY, names)
        told = assignments(
            plan, RunId(7), Epoch(3), manifest_bytes=10, context_tokens=64, kv_tokens=64,
            n_contexts=1, max_rows=8,
        )  # fmt: skip
        assert [told[m.agent].rank for m in plan.members] == list(range(len(plan.members)))
        for stage in plan.stages:
            layers = list(range(stage.first_layer, stage.first_layer + stage.n_layers))
            for member in stage.members:
                assert [share.layer for share in told[member.agent].layers] == layers
        assert largest_reply_bytes(plan, GEOMETRY, 8) >= 4 * 8 * GEOMETRY.hidden_size
