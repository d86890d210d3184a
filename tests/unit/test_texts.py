"""Texts outlive plans: what a text does when its plan fails, alone and beside others."""

from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
import pytest

from agent.ids import AgentName, KvId
from agent.kv_ops import KvOp, KvOpCode
from coordinator.engine import Engine
from coordinator.rows import Rows
from coordinator.texts import Text, Texts
from kernels.errors import AgentLostError, PlanError, RemoteError

ROW = np.zeros((1, 4), np.float32)


class Carrier:
    """An engine that notes what it is asked, and fails once told to."""

    max_rows = 16

    def __init__(self) -> None:
        self.ended = self.fails = False
        self.ops: list[tuple[KvOpCode, KvId]] = []
        self.positions: list[list[int]] = []

    def control_kv(self, ops: Sequence[KvOp], names: Collection[AgentName] | None = None) -> None:
        if self.fails:
            raise AgentLostError("agent 'b' was lost", "b")
        self.ops += [(op.code, op.kv_id) for op in ops]

    def step(self, x: Any, rows: Rows, samplers: Any, times: Any) -> list[object]:
        if self.fails:
            raise AgentLostError("agent 'b' was lost", "b")
        self.positions.append(rows.positions)
        return []


class Mover:
    """A migration whose texts open in the plan to come."""

    def __init__(self, new: Carrier) -> None:
        self._new = new
        self.told: list[str] = []

    def engine_for_new(self) -> Engine:
        return cast("Engine", self._new)

    def opened(self, kv_id: KvId, reserve_tokens: int) -> None:
        self.told.append("opened")

    def begins(self, kv_id: KvId) -> None:
        self.told.append("begins")

    def ended(self, kv_id: KvId, n_tokens: int, prefill: bool) -> None:
        self.told.append(f"ended {n_tokens}")

    def closed(self, kv_id: KvId) -> None:
        self.told.append("closed")


class House:
    """Texts, and the plans that recoveries put into force."""

    def __init__(self, n_plans: int) -> None:
        self.engines = [Carrier() for _ in range(n_plans)]
        self.n_recoveries = 0
        self.texts = Texts(self._engine, self._recover)

    @property
    def now(self) -> Carrier:
        return self.engines[self.n_recoveries]

    def _engine(self) -> Engine:
        if self.now.ended:
            raise PlanError("no plan is in force")
        return cast("Engine", self.now)

    def _recover(self, why: RemoteError) -> None:
        if self.n_recoveries + 1 == len(self.engines):
            raise why
        self.now.ended = True
        self.texts.follower = None
        self.n_recoveries += 1

    def open(self, number: int = 1) -> Text:
        text = self.texts.new(KvId(number))
        text.open(50)
        return text


def test_after_a_loss_a_text_is_open_without_rows_in_another_plan() -> None:
    house = House(2)
    text = house.open()
    text.step(ROW, 0, ())
    assert text.n_tokens == 1
    house.now.fails = True
    with pytest.raises(AgentLostError) as lost:
        text.step(ROW, 1, ())
    text.reopen(lost.value)
    assert (text.n_tokens, text.engine, house.n_recoveries) == (0, house.engines[1], 1)
    assert house.now.ops == [(KvOpCode.OPEN, 1)]
    text.close()
    assert house.now.ops[-1] == (KvOpCode.RELEASE, 1)
    assert house.texts.here() == []


def test_texts_of_one_lost_plan_share_its_successor() -> None:
    house = House(2)
    texts = [house.open(1), house.open(2)]
    house.now.fails = True
    for text in texts:
        with pytest.raises(AgentLostError) as lost:
            text.step(ROW, 0, ())
        text.reopen(lost.value)
        text.step(ROW, 0, ())
    assert house.n_recoveries == 1
    assert house.now.positions == [[0], [0]]


def test_a_plan_that_fails_at_once_is_replaced_too_and_none_ends_the_text() -> None:
    house = House(3)
    text = house.open()
    for engine in house.engines:
        engine.fails = True
    with pytest.raises(AgentLostError, match="'b' was lost"):
        text.reopen(AgentLostError("agent 'a' was lost", "a"))
    assert house.n_recoveries == 2


def test_a_text_that_has_moved_and_lost_the_new_plan_does_not_open_in_it_again() -> None:
    house, coming = House(2), Carrier()
    text = house.open()
    house.texts.follower = mover = Mover(coming)
    text.engine = cast("Engine", coming)
    text.step(ROW, 0, ())
    assert mover.told == ["begins", "ended 1"]
    coming.fails = True
    with pytest.raises(AgentLostError) as lost:
        text.step(ROW, 1, ())
    # The plan that it came from still stands.
    assert not house.now.ended
    text.reopen(lost.value)
    assert house.n_recoveries == 1
    assert text.engine is house.engines[1]


def test_a_text_that_comes_no_further_is_not_carried_for_ever() -> None:
    house = House(100)
    text = house.open()
    n_losses = 0
    with pytest.raises(AgentLostError, match="the same row again"):  # noqa: PT012
        while True:
            # The first row always goes well, the second one never does.
            text.step(ROW, 0, ())
            n_losses += 1
            text.reopen(AgentLostError("the same row again", "b"))
    assert n_losses < 50
