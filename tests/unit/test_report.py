from agent.ids import AgentName, ModelId
from agent.share import AtomRange, LayerShare
from coordinator.plan import Member, Plan, Stage
from coordinator.report import placement_rows
from kernels.layout import Geometry, WeightFormat

GEOMETRY = Geometry(64, 2, 8, 4, 8, 172, 500, WeightFormat.F32, 1e-5)


def rows_of(*members: Member) -> list[list[str]]:
    return placement_rows(Plan(ModelId("0" * 32), (Stage(0, 2, members),)), GEOMETRY)


def test_alike_layers_are_shown_as_spans() -> None:
    shares = tuple(LayerShare(i, (AtomRange(1, 2),), (AtomRange(3, 3),)) for i in range(2))
    (row,) = rows_of(Member(AgentName("a"), shares, (AtomRange(3, 1),)))
    assert row[:6] == ["a", "0-1", "1-2", "2-5", "96-171", "384-499"]


def test_a_member_of_one_layer_is_not_shown_as_holding_all() -> None:
    (row,) = rows_of(Member(AgentName("a"), (LayerShare(0, (AtomRange(0, 2),)),)))
    assert row[2:4] == ["2 atoms, differ by layer", "differ by layer"]


def test_a_member_without_atoms_has_dashes() -> None:
    (row,) = rows_of(Member(AgentName("a")))
    assert row[2:6] == ["-", "-", "-", "-"]
