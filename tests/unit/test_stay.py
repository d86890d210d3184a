"""A plan that is made anew leaves atoms where they are."""

from agent.ids import AgentName, ModelId
from agent.share import indices
from coordinator.plan import Plan, check_plan
from coordinator.planner.cost import Link, Offer, PlanRequest, counts_of
from coordinator.planner.place import make_plan
from coordinator.planner.stay import staying
from kernels.layout import Geometry, WeightFormat

GEOMETRY = Geometry(
    hidden_size=256, n_layers=3, n_heads=12, n_kv_heads=12, head_dim=32, n_columns=1280,
    vocab_size=2560, fmt=WeightFormat.Q8, norm_eps=1e-5,
)  # fmt: skip
LINK = Link(0.3e-3, 1e8)
Atom = tuple[str, int, int]


def planned(**rates: float) -> Plan:
    offers = [Offer(AgentName(name), rate, 1 << 34) for name, rate in rates.items()]
    request = PlanRequest(context_tokens=128, kv_tokens=128, place="spread")
    return make_plan(ModelId("m" * 32), GEOMETRY, offers, request, LINK).plan


def held(plan: Plan) -> dict[str, set[Atom]]:
    found: dict[str, set[Atom]] = {}
    for member in plan.members:
        atoms = found[member.agent] = {("vocab", -1, i) for i in indices(member.vocab)}
        for share in member.layers:
            atoms |= {("group", share.layer, i) for i in indices(share.head_groups)}
            atoms |= {("column", share.layer, i) for i in indices(share.columns)}
    return found


def new_atoms(before: Plan, after: Plan) -> set[Atom]:
    """Atoms that somebody holds afterwards who did not before."""
    had, has = held(before), held(after)
    return {atom for name, atoms in has.items() for atom in atoms - had.get(name, set())}


def test_after_a_loss_only_what_was_lost_has_to_come_from_elsewhere() -> None:
    before = planned(a=1e9, b=1e9, c=1e9)
    for lost in "abc":
        made = planned(**{name: 1e9 for name in "abc" if name != lost})
        after = staying(made, before, GEOMETRY)
        check_plan(after, GEOMETRY)
        assert new_atoms(before, after) == held(before)[lost]
        counts, wanted = counts_of(after, GEOMETRY), counts_of(made, GEOMETRY)
        assert (counts.groups == wanted.groups).all()
        assert (counts.columns == wanted.columns).all()
        assert (counts.vocab == wanted.vocab).all()
    # What it is good for: runs that are made anew lie elsewhere.
    assert len(new_atoms(before, planned(b=1e9, c=1e9))) > len(held(before)["a"])


def test_nothing_changes_where_the_shares_are_the_same() -> None:
    before = planned(a=2e9, b=1e9)
    assert staying(planned(a=2e9, b=1e9), before, GEOMETRY) == before


def test_whoever_comes_gets_atoms_from_the_others_and_they_swap_none() -> None:
    before = planned(a=1e9, b=1e9)
    after = staying(planned(a=1e9, b=1e9, c=1e9), before, GEOMETRY)
    check_plan(after, GEOMETRY)
    assert new_atoms(before, after) == held(after)["c"]


def test_a_plan_for_strangers_is_as_good_as_any() -> None:
    before, made = planned(a=1e9, b=1e9), planned(x=1e9, y=1e9)
    assert staying(made, before, GEOMETRY) == made
