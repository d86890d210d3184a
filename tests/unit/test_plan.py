"""Plans: the file form, and the checks that name the first thing wrong."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ids import AgentName, ModelId
from agent.share import AtomRange, LayerShare, count_atoms
from coordinator.plan import Member, Plan, Stage, check_plan, decode_plan, encode_plan
from coordinator.random_plan import random_plan
from kernels.errors import PlanError
from kernels.layout import Geometry, WeightFormat

# 2 layers, 2 groups, 3 column atoms, 3 vocab atoms.
G = Geometry(64, 2, 4, 2, 16, 96, 300, WeightFormat.F32, 1e-5)
BIG = Geometry(64, 7, 32, 8, 8, 999, 5001, WeightFormat.F32, 1e-5)
MODEL = ModelId("00ff")


def r(first: int, count: int) -> tuple[AtomRange, ...]:
    return (AtomRange(first, count),)


def good() -> Plan:
    a = Member(AgentName("a"), tuple(LayerShare(i, r(0, 1), r(0, 3)) for i in range(2)), r(0, 2))
    b = Member(AgentName("b"), tuple(LayerShare(i, r(1, 1)) for i in range(2)), r(2, 1))
    return Plan(MODEL, (Stage(0, 2, (a, b)),))


def with_members(*members: Member) -> Plan:
    return Plan(MODEL, (Stage(0, 2, members),))


def problem(plan: Plan) -> str:
    with pytest.raises(PlanError) as e:
        check_plan(plan, G)
    return str(e.value)


def test_a_good_plan_passes_and_survives_its_file() -> None:
    check_plan(good(), G)
    assert decode_plan(encode_plan(good())) == good()


@given(seed=st.integers(0, 10**9), n=st.integers(1, 12))
def test_random_plans_are_legal_and_survive_their_file(seed: int, n: int) -> None:
    names = [AgentName(f"pi-{i}") for i in range(n)]
    plan = random_plan(random.Random(seed), MODEL, BIG, names)
    check_plan(plan, BIG)
    assert sorted(m.agent for m in plan.members) == sorted(names)
    assert decode_plan(encode_plan(plan)) == plan


def test_random_plans_are_scattered() -> None:
    names = [AgentName("a"), AgentName("b"), AgentName("c")]
    plans = [random_plan(random.Random(seed), MODEL, BIG, names) for seed in range(30)]
    assert {len(p.stages) for p in plans} == {1, 2, 3}
    shares = [s for p in plans for m in p.members for s in m.layers]
    assert any(len(s.head_groups) > 1 for s in shares)
    assert any(list(s.columns) != sorted(s.columns, key=lambda r: r.first) for s in shares)
    assert any(not s.head_groups for s in shares)
    assert len({p.members[0].agent for p in plans}) == 3
    again = random_plan(random.Random(4), MODEL, BIG, names, wire="f32", kv="f32")
    assert (again.wire, again.kv) == ("f32", "f32")
    one = [random_plan(random.Random(s), MODEL, BIG, names, max_stages=1) for s in range(9)]
    assert {len(p.stages) for p in one} == {1}


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_any_missing_or_doubled_atom_is_found(seed: int, data: st.DataObject) -> None:
    """Lengthen or shorten any one range of a legal plan: it must be refused."""
    plan = random_plan(random.Random(seed), MODEL, BIG, [AgentName("a"), AgentName("b")])
    tree = msgspec.to_builtins(plan)
    ranges = [
        held
        for stage in tree["stages"]
        for m in stage["members"]
        for held in (
            *m["vocab"],
            *(x for s in m["layers"] for x in (*s["head_groups"], *s["columns"])),
        )
    ]
    held = ranges[data.draw(st.integers(0, len(ranges) - 1))]
    held[data.draw(st.integers(0, 1))] += data.draw(st.sampled_from([-1, 1]))
    with pytest.raises(PlanError):
        check_plan(msgspec.convert(tree, Plan), BIG)


def test_the_first_problem_is_named() -> None:
    a, b = good().members
    assert problem(with_members(a)) == (
        "head group 1 of layer 0 is missing from the plan; hold each exactly once"
    )
    twice = Member(b.agent, a.layers, b.vocab)
    assert problem(with_members(a, twice)) == (
        "head group 0 of layer 0 is held 2 times; hold each exactly once"
    )
    no_vocab = Member(b.agent, b.layers)
    assert problem(with_members(a, no_vocab)) == (
        "vocab 2 is missing from the plan; hold each exactly once"
    )
    far = Member(b.agent, b.layers, r(2, 2))
    assert problem(with_members(a, far)) == (
        "plan names vocabs 2 to 3; the model has vocabs 0 to 2"
    )
    assert problem(with_members(a, a)) == (
        "plan names agent 'a' more than once; give each agent one entry"
    )
    assert problem(with_members()) == "plan has 0 members; 1 to 256 are possible"
    many = [Member(AgentName(f"x{i}")) for i in range(257)]
    assert problem(with_members(*many)) == "plan has 257 members; 1 to 256 are possible"


def test_layers_and_stages_must_fit_together() -> None:
    a, b = good().members
    assert problem(Plan(MODEL, (Stage(0, 1, (a, b)),))).startswith(
        "agent 'a' lists layer 1 twice or outside its stage (layers 0 to 0)"
    )
    doubled = Member(a.agent, (a.layers[0], a.layers[0]), a.vocab)
    assert problem(with_members(doubled, b)).startswith("agent 'a' lists layer 0 twice")
    one = Stage(0, 1, (Member(a.agent, (a.layers[0],), a.vocab), Member(b.agent, (b.layers[0],))))
    assert problem(Plan(MODEL, (one,))) == "plan covers 1 layers; the model has 2"
    late = Stage(1, 1, (a, b))
    assert problem(Plan(MODEL, (late,))) == (
        "plan has a stage of 1 layers from 1; expected one that starts at layer 0 and ends at or "
        "before the model's last layer, 1"
    )
    assert problem(Plan(MODEL, (Stage(0, 1, (a,)), Stage(1, 1, ())))).startswith("agent 'a' lists")
    empty = Member(AgentName("c"))
    assert problem(Plan(MODEL, (Stage(0, 2, ()), Stage(2, 1, (empty,))))) == (
        "the stage from layer 0 has no members"
    )


@pytest.mark.parametrize(
    "stage",
    [
        Stage(0, 10**15, (Member(AgentName("a")),)),
        Stage(0, 2, (Member(AgentName("a"), (LayerShare(0, r(0, 10**15)),)),)),
        Stage(0, 2, (Member(AgentName("a"), (LayerShare(0, r(-(10**15), 10**16)),)),)),
        Stage(0, 2, (Member(AgentName("a"), (LayerShare(0, r(0, 2) * 100_000),)),)),
        Stage(0, 2, (Member(AgentName("a"), (LayerShare(0, r(0, 0)),)),)),
        Stage(0, 2, (Member(AgentName("a"), (LayerShare(-1),)),)),
    ],
    ids=["layers", "atoms", "negative", "repeats", "empty", "layer"],
)
def test_absurd_numbers_are_refused_before_they_allocate(stage: Stage) -> None:
    with pytest.raises(PlanError):
        check_plan(Plan(MODEL, (stage,)), G)


@given(data=st.binary(max_size=300))
def test_garbage_is_a_plan_error(data: bytes) -> None:
    with pytest.raises(PlanError):
        decode_plan(data)


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_file_is_a_plan_or_a_plan_error(data: st.DataObject) -> None:
    text = bytearray(encode_plan(good()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        plan = decode_plan(bytes(text))
    except PlanError:
        return
    try:
        check_plan(plan, G)
    except PlanError:
        return
    # Whatever passes holds every atom once.
    assert sum(count_atoms(m.vocab) for m in plan.members) == G.n_vocab_atoms


def test_hostile_json() -> None:
    for text in (
        b"[" * 100_000,
        b'{"model_id": "x", "stages": []',
        b'{"model_id": "x", "stages": [], "surprise": 1}',
        b'{"model_id": "x", "stages": [], "wire": "q8"}',
        b'{"model_id": "x", "stages": [], "context_tokens": 1e999}',
        b'{"model_id": "\xff", "stages": []}',
        b"{}",
        b"",
    ):
        with pytest.raises(PlanError, match=r"plan file cannot be read: .*plan --json"):
            decode_plan(text)
    with pytest.raises(PlanError, match="at most 16777216 are read"):
        decode_plan(b" " * ((16 << 20) + 1))
    with pytest.raises(PlanError, match="plan has 0 members"):
        check_plan(decode_plan(b'{"model_id": "x", "stages": []}'), G)
