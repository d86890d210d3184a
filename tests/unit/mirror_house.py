"""What a mirror touches, played: see `move_house`."""

from collections.abc import Collection, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from agent.ids import AgentName, Epoch, KvId
from agent.migration_messages import Arrive, MoveEnd, Want
from agent.share import count_atoms
from coordinator import following as following_module
from coordinator import mirror as mirror_module
from coordinator import mirrors as mirrors_module
from coordinator.mirrors import Mirrors
from coordinator.moves import Moves
from coordinator.plan import Plan
from coordinator.planner.place import Offer
from coordinator.texts import Text, Texts
from kernels.errors import RemoteError, ResourceError
from tests.kernel_models import geometry
from tests.unit.move_house import ROW, RUN, Board, Bulk, Carrier, Plans

WEIGHTS_BYTES = 1000
GROUP_BYTES = 10


class MirrorBoard(Board):
    """Agents with some memory; what an agent holds it holds until it is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.memory_bytes = WEIGHTS_BYTES + 100

    def offers(self) -> list[Offer]:
        return [Offer(name, self.memory_bytes, 1e9) for name in self.here]

    def agents(self) -> list[Any]:
        return [
            SimpleNamespace(name=name, alive=True, heartbeat=None, ready=None, holds=lambda _: True)
            for name in self.here
        ]

    def mirrors_begun(self) -> list[Epoch]:
        """Names of the mirrors that somebody was told to be a target of, in order."""
        orders = [o for _, o in self.orders if isinstance(o, Arrive) and o.mirror]
        return list(dict.fromkeys(Epoch(o.epoch) for o in orders))

    def freed(self, epoch: Epoch) -> set[AgentName]:
        """Who was told to free an epoch."""
        return {n for n, o in self.orders if isinstance(o, MoveEnd) and o.frees == epoch}

    def wanted(self, epoch: Epoch) -> list[int]:
        """How many rows targets of a migration were told to have, in order."""
        return [o.n_tokens for _, o in self.orders if isinstance(o, Want) and o.epoch == epoch]


class MirrorPlans(Plans):
    """The plan in force, whose members have weights and pools of known sizes."""

    def __init__(self, plan: Plan, control: Board) -> None:
        super().__init__(plan, control)
        self.last_epoch = Epoch(1)
        self.n_drops = 0
        self.has_room = True
        self.besides_bytes: Mapping[AgentName, int] = {}

    def next_epoch(self) -> Epoch:
        self.last_epoch = Epoch(self.last_epoch + 1)
        return self.last_epoch

    def prepare(self, plan: Plan, kept: Collection[AgentName]) -> Any:
        prepared = super().prepare(plan, kept)
        epoch = self.next_epoch()
        told = dict.fromkeys(prepared.told, epoch)
        return prepared._replace(epoch=epoch, told=told)

    def pool_bytes(self, plan: Plan) -> dict[AgentName, int]:
        return {
            member.agent: GROUP_BYTES * sum(count_atoms(s.head_groups) for s in member.layers)
            for member in plan.members
        }

    def weights_bytes(self) -> dict[AgentName, int]:
        assert self.plan is not None
        return dict.fromkeys((member.agent for member in self.plan.members), WEIGHTS_BYTES)

    def check_room(
        self,
        before: Plan,
        plan: Plan,
        kept: Collection[AgentName] = (),
        besides_bytes: Mapping[AgentName, int] = MappingProxyType({}),
    ) -> None:
        self.besides_bytes = besides_bytes
        if not self.has_room:
            raise ResourceError("agent 'a' would need too much")

    def suspend(self) -> None:
        self.carrier.ended = True
        self.plan = None

    def drop(self) -> None:
        self.n_drops += 1
        super().drop()


class MirrorHouse:
    """Everything that a mirror touches; plan 1 is in force, `text` writes without pause.

    Args:
        before: the plan in force.
        after: what a loss is followed by.
    """

    def __init__(self, before: Plan, after: Plan) -> None:
        self.board = MirrorBoard()
        self.plans = MirrorPlans(before, self.board)
        self.after = after
        self.restored: list[bool] = []
        self.texts = Texts(lambda: self.plans.engine, self._recover)
        self.bulk = Bulk()
        self.moves = Moves(RUN, self.plans, self.board, self.bulk, self.texts, geometry())
        self.mirrors = Mirrors(
            RUN, True, self.plans, self.moves, self.board, self.texts, geometry()
        )
        self.check = lambda: None
        # Rows take so long that whatever is copied is faster.
        self.texts.note(8, 800.0)

    def _recover(self, why: RemoteError) -> None:
        self.moves.abandon(str(why))
        self.restored.append(self.mirrors.hold() and self.mirrors.restore(self.after, self.check))
        if not self.restored[-1]:
            self.mirrors.plan_changes()
            self.plans.carrier.ended = True
            self.plans.carrier, self.plans.plan = Carrier(), self.after
            self.plans.epoch = self.plans.next_epoch()

    def text(self, number: int) -> Text:
        text = self.texts.new(KvId(number))
        text.open(100)
        return text

    def write(self, text: Text, n_rows: int) -> None:
        for _ in range(n_rows):
            self.mirrors.go_on()
            text.step(ROW, text.n_tokens, ())
        self.mirrors.go_on()


class Clock:
    """Time that passes only when told; stands in for the module of that name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        for module in (mirrors_module, mirror_module, following_module):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now_s
