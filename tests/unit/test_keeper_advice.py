"""When the keeper looks for a better plan, by fakes of all that it looks at."""

from types import SimpleNamespace
from typing import Any

import pytest

from agent.ids import AgentName, Epoch, InstanceId
from agent.messages import Heartbeat, Hello
from agent.versions import our_versions
from coordinator.advisor import LOOK_S
from coordinator.keeper import Keeper
from coordinator.known_agent import Agent
from coordinator.supervisor import Advised
from kernels.errors import ResourceError
from kernels.layout import Geometry, WeightFormat

GEOMETRY = Geometry(512, 6, 8, 4, 64, 1376, 8192, WeightFormat.Q8, 1e-5)


class Scene:
    """A keeper with a plan in force on one board, asked about advice and nothing else."""

    def __init__(self) -> None:
        self.place, self.is_moving, self.in_force = "auto", False, True
        self.n_asked, self.moves, self.error = 0, (), ""
        self.events: list[object] = []
        self.rate = 1e9
        control = SimpleNamespace(agents=lambda: [self.board()])
        cluster = SimpleNamespace(
            directory=SimpleNamespace(geometry=GEOMETRY), control=control, epoch=Epoch(1),
            moves=self, installer=self, replan=self.replan,
        )  # fmt: skip
        supervisor = SimpleNamespace(usable=(), cordoned=frozenset(), in_force=True)
        self.supervisor: Any = supervisor
        fake: Any = cluster
        nothing: Any = None
        self.keeper = Keeper(fake, supervisor, nothing, nothing, dict)
        self.keeper.happen = self.events.append  # type: ignore[method-assign,assignment]

    def board(self) -> Agent:
        hello = Hello(AgentName("a"), InstanceId("1"), our_versions(), 4, 4, 1 << 30, 1e9)
        beat = Heartbeat(1, 1 << 30, 0, bytes_per_s=self.rate)
        return Agent(b"link", hello, 0.0, epoch=Epoch(1), heartbeat=beat)

    def replan(self, *_: object) -> object:
        self.n_asked += 1
        if self.error:
            raise ResourceError(self.error)
        return SimpleNamespace(moves=self.moves)

    def advise(self, now_s: float) -> int:
        """Let it look; return how often the planner was asked by now."""
        self.keeper._advise([self.board()], now_s)
        return self.n_asked


@pytest.fixture
def scene() -> Scene:
    """A scene in which the board has been seen for a while."""
    found = Scene()
    for i in range(10):
        found.advise(0.4 * i)
    found.advise(10.0)
    found.n_asked = 0
    return found


def test_a_change_is_advised_at_once_and_a_steady_board_seldom(scene: Scene) -> None:
    assert scene.advise(10.2) == 0
    scene.rate = 0.3e9
    scene.moves = ("one",)  # type: ignore[assignment]
    assert scene.advise(10.4) == 1
    assert scene.events == [Advised()]
    assert scene.advise(10.6) == 1
    assert scene.advise(10.4 + LOOK_S) == 2


def test_no_moves_no_advice(scene: Scene) -> None:
    scene.rate = 0.3e9
    assert scene.advise(10.4) == 1
    scene.rate, scene.error = 1e9, "does not fit"
    assert scene.advise(10.8) == 2
    assert scene.events == []


def test_what_changes_during_a_move_is_looked_at_afterwards(scene: Scene) -> None:
    scene.is_moving, scene.rate = True, 0.3e9
    assert scene.advise(10.4) == scene.advise(10.8) == 0
    scene.is_moving = False
    # What it shows now may be the move's doing still.
    assert scene.advise(11.2) == scene.advise(11.6) == 0
    assert scene.advise(12.0) == 1


def test_without_a_plan_or_with_a_spread_one_nobody_asks(scene: Scene) -> None:
    scene.rate, scene.place = 0.3e9, "spread"
    assert scene.advise(20.0) == 0
    scene.place, scene.supervisor.in_force = "auto", False
    assert scene.advise(20.4) == 0
    scene.supervisor.in_force = True
    assert scene.advise(20.8) == 1
