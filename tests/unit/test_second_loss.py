"""A mirrored text whose next plan loses a member too, while that loads."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from agent.ids import AgentName, Epoch
from coordinator.engine import Engine
from coordinator.hot_link import HotLink
from coordinator.plan import Plan
from coordinator.plans import Plans
from coordinator.recovery import Recovery
from kernels.errors import AgentLostError, RemoteError
from tests.unit.mirror_house import MirrorBoard, MirrorHouse, MirrorPlans
from tests.unit.move_house import ROW, A, B, C, Carrier, Link, plan

if TYPE_CHECKING:
    from coordinator.cluster import Cluster


class LoadingBoard(MirrorBoard):
    """Agents of which some are lost while they load a plan that is installed."""

    def __init__(self) -> None:
        super().__init__()
        self.loses: list[AgentName] = []

    def wait_ready(
        self,
        epoch: Epoch,
        n_bytes: Mapping[AgentName, int],
        stall_s: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        if self.loses:
            name = self.loses.pop(0)
            self.lose(name)
            raise AgentLostError(f"agent {name!r} was lost", name)

    def failed(self, epoch: Epoch) -> frozenset[AgentName]:
        return frozenset()


class LoadingPlans(MirrorPlans):
    """Plans that are installed as always, by agents that are played."""

    def _told(self, plan: Plan, epoch: Epoch) -> dict[AgentName, Any]:
        return {member.agent: epoch for member in plan.members}

    def _expect(self, plan: Plan, told: Mapping[AgentName, Any], epoch: Epoch) -> HotLink:
        link = Link()
        link.join = lambda deadline_s: None  # type: ignore[attr-defined]
        return cast("HotLink", link)

    def _make_engine(self, plan: Plan, link: HotLink) -> Engine:
        self.carrier = Carrier()
        return cast("Engine", self.carrier)


class LoadingHouse(MirrorHouse):
    """A cluster that recovers by itself, as `headwise run` does."""

    def __init__(self) -> None:
        super().__init__(plan(a=2, b=1, c=1), plan(a=4))
        self.loading = LoadingBoard()
        self.loading.here = self.board.here
        self.board = self.loading
        self.plans = LoadingPlans(self.plans.plan or self.after, self.loading)
        self.mirrors._installer = self.moves._installer = self.plans
        self.mirrors._control = self.moves._control = self.loading
        self.joined = Plans.__new__(Plans)
        self.joined.installer, self.joined.moves = self.plans, self.moves
        self.joined.mirrors, self.joined._check = self.mirrors, lambda: None

    def _recover(self, why: RemoteError) -> None:
        cluster = SimpleNamespace(
            moves=self.moves, control=self.board, epoch=self.plans.epoch,
            agent_names=lambda: list(self.board.here),
            make_plan=lambda names: plan(**{str(name): 4 // len(names) for name in names}),
            install=self.joined.install,
        )  # fmt: skip
        Recovery(cast("Cluster", cluster)).go_on_without(why)


def test_a_text_outlives_a_second_loss_while_the_next_plan_loads() -> None:
    h = LoadingHouse()
    text = h.text(1)
    h.write(text, 30)
    assert h.board.mirrors_begun()
    # Computing is faster: the next plan is installed, and loses one of its members.
    h.texts.note(8, 1e-6)
    h.loading.loses = [B]
    h.board.lose(C)
    text.reopen(AgentLostError("agent 'c' was lost", "c"))
    assert h.plans.plan == plan(a=4)
    assert text.engine is cast("Carrier", h.plans.carrier)
    text.step(ROW, 0, ())


def test_a_plan_that_did_not_get_ready_is_none() -> None:
    h = LoadingHouse()
    former = h.plans.plan
    h.loading.loses = [B]
    with pytest.raises(AgentLostError):
        h.joined.install(plan(a=2, b=2), end_texts=False)
    assert h.plans.plan is None
    assert h.plans.plan is not former
    assert h.board.here == [A, C]
