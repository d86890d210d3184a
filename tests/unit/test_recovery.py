"""Which agents a cluster without a supervisor goes on with."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import pytest

from agent.ids import AgentName, Epoch
from coordinator.recovery import Recovery
from kernels.errors import (
    AgentLostError,
    FaultyAgentError,
    LateAgentsError,
    PlanError,
    RemoteError,
    ResourceError,
)

if TYPE_CHECKING:
    from coordinator.cluster import Cluster

A, B, C = AgentName("a"), AgentName("b"), AgentName("c")


class House:
    """A cluster whose plans fail as told; it is its own register and its own moves."""

    def __init__(self, *failures: Exception, least: int = 1) -> None:
        self.epoch = Epoch(1)
        self.here = [A, B, C]
        self.lost: list[AgentName] = []
        self.tried: list[tuple[AgentName, ...]] = []
        self.cannot: dict[Epoch, frozenset[AgentName]] = {}
        self.returns = False
        self.on_install: Callable[[], None] = lambda: None
        self._failures = list(failures)
        self._least = least
        self.control = self.moves = self

    def abandon(self, reason: str) -> bool:
        return False

    def agent_names(self) -> list[AgentName]:
        return list(self.here)

    def make_plan(self, names: Sequence[AgentName]) -> tuple[AgentName, ...]:
        if len(names) < self._least:
            raise ResourceError("the model does not fit")
        return tuple(names)

    def install(self, plan: tuple[AgentName, ...], end_texts: bool) -> None:
        assert not end_texts
        self.tried.append(plan)
        self.on_install()
        self.epoch = Epoch(self.epoch + 1)
        if self._failures:
            raise self._failures.pop(0)

    def lose(self, name: AgentName, reason: str) -> None:
        self.lost.append(name)
        if not self.returns:
            self.here.remove(name)

    def failed(self, epoch: Epoch) -> frozenset[AgentName]:
        return self.cannot.get(epoch, frozenset())

    def recover(self, why: RemoteError) -> None:
        Recovery(cast("Cluster", self)).go_on_without(why)


def lost(name: AgentName) -> AgentLostError:
    return AgentLostError(f"agent {name!r} was lost", name)


def test_the_others_go_on_without_who_was_lost() -> None:
    house = House()
    house.recover(lost(B))
    assert (house.tried, house.lost) == ([(A, C)], [B])


def test_agents_that_are_late_are_left_out_too() -> None:
    house = House(LateAgentsError("no hot link from a, c", [A, C]))
    house.recover(AgentLostError("the plan is gone"))
    assert house.tried == [(A, B, C), (B,)]


def test_an_agent_that_cannot_load_is_left_out() -> None:
    house = House(RemoteError("agent 'a' cannot load its part: no memory"))
    house.cannot = {Epoch(2): frozenset({A})}
    house.recover(lost(B))
    assert house.tried == [(A, C), (C,)]


def test_an_agent_that_comes_back_at_once_is_not_tried_for_ever() -> None:
    house = House(lost(B), lost(C))
    house.returns = True
    with pytest.raises(AgentLostError, match="'c' was lost"):
        house.recover(lost(A))
    assert house.tried == [(B, C), (C,)]


def test_an_agent_that_leaves_while_the_plan_is_made_is_left_out() -> None:
    house = House(PlanError("plan names agent 'a', which is not here"))
    house.on_install = lambda: house.here.remove(A) if A in house.here else None
    house.recover(lost(B))
    assert house.tried == [(A, C), (C,)]


def test_a_faulty_agent_is_not_used_again() -> None:
    house = House()
    recovery = Recovery(cast("Cluster", house))
    recovery.go_on_without(FaultyAgentError("agent 'b' sent inf", B))
    recovery.go_on_without(AgentLostError("the plan is gone"))
    assert house.tried == [(A, C), (A, C)]


@pytest.mark.parametrize(
    ("failure", "least"), [(None, 3), (PlanError("no"), 1), (RemoteError("no control"), 1)]
)
def test_what_cannot_be_mended_says_why(failure: Exception | None, least: int) -> None:
    house = House(*([failure] if failure else []), least=least)
    with pytest.raises(RemoteError, match="'b' was lost; without it: "):
        house.recover(lost(B))
