"""What a migration touches, played: texts are real, agents and plans are not."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import numpy as np

from agent.bulk import BulkServer
from agent.ids import AgentName, Epoch, KvId, ModelId, RunId
from agent.kv_ops import KvOp, KvOpCode
from agent.migration_messages import (
    Arrive,
    Begun,
    Depart,
    Have,
    MoveEnd,
    MoveEnded,
    MoveOrder,
    MoveReport,
    Want,
)
from agent.share import AtomRange, KvFormat, LayerShare
from coordinator.control import Control
from coordinator.engine import Engine
from coordinator.identity import LinkSecrets
from coordinator.installer import Installer
from coordinator.migration_events import Outcome
from coordinator.moves import Moves
from coordinator.offers import LOOPBACK
from coordinator.plan import Member, Plan, Stage
from coordinator.planner.place import Link
from coordinator.prepared import Prepared
from coordinator.rows import Rows
from coordinator.texts import Text, Texts
from kernels.errors import AgentLostError, PlanError, RemoteError
from tests.kernel_models import geometry

RUN = RunId(5)
A, B, C = AgentName("a"), AgentName("b"), AgentName("c")
ROW = np.zeros((1, 4), np.float32)


def plan(kv: KvFormat = "f16", **groups: int) -> Plan:
    """A plan of one layer: agents and how many head groups each has."""
    members, first = [], 0
    for name, n_groups in groups.items():
        members.append(Member(AgentName(name), (LayerShare(0, (AtomRange(first, n_groups),)),)))
        first += n_groups
    return Plan(ModelId("m"), (Stage(0, 1, tuple(members)),), kv=kv)


class Carrier:
    """An engine that notes what it is asked."""

    max_rows = 16

    def __init__(self) -> None:
        self.ended = False
        self.on_release: Callable[[], None] = lambda: None
        self.ops: list[tuple[KvOpCode, KvId, tuple[AgentName, ...] | None]] = []
        self.positions: list[list[int]] = []

    def control_kv(self, ops: Sequence[KvOp], names: Collection[AgentName] | None = None) -> None:
        for op in ops:
            self.ops.append((op.code, op.kv_id, None if names is None else tuple(names)))
            if op.code is KvOpCode.RELEASE:
                self.on_release()

    def step(self, x: Any, rows: Rows, samplers: Any, times: Any) -> list[object]:
        self.positions.append(rows.positions)
        return []


class Board(Control):
    """A register of agents that are good at moving.

    Those in `silent` say nothing, those in `loading` are not ready.
    """

    def __init__(self) -> None:
        self.here = [A, B, C]
        self.silent: set[AgentName] = set()
        self.loading: set[AgentName] = set()
        self.unanswered: tuple[type, ...] = ()
        self.lost: list[tuple[AgentName, str]] = []
        self.orders: list[tuple[AgentName, MoveOrder]] = []
        self.told: set[tuple[AgentName, Epoch]] = set()
        self.reports: list[tuple[AgentName, MoveReport]] = []
        # How often each agent has dialled anew; nobody is told of one that holds nothing.
        self.n_dialled: Counter[AgentName] = Counter()

    def link_secrets(self, names: Sequence[AgentName]) -> list[LinkSecrets]:
        for name in names:
            self._check(name)
        return [LinkSecrets(n, b"", "", b"", f"{n}{self.n_dialled[n]}".encode()) for n in names]

    def link(self, names: Sequence[AgentName] | None = None) -> Link:
        return LOOPBACK

    def assign(self, told: Any) -> None:
        for name, assignment in told.items():
            self._check(name)
            self.told.add((name, assignment))

    def is_ready(self, name: AgentName, epoch: Epoch) -> bool:
        return (name, epoch) in self.told and name not in self.silent | self.loading

    def failure(self, name: AgentName, epoch: Epoch) -> str:
        return ""

    def order(self, name: AgentName, order: MoveOrder) -> None:
        self._check(name)
        self.orders.append((name, order))
        if name in self.silent or isinstance(order, self.unanswered):
            return
        head = order.run_id, order.epoch
        match order:
            case Arrive() | Depart():
                self.reports.append((name, Begun(*head, arrives=isinstance(order, Arrive))))
            case Want():
                have = Have(*head, order.kv_id, order.version, order.n_tokens, order.gone)
                self.reports.append((name, have))
            case MoveEnd():
                self.reports.append((name, MoveEnded(*head)))

    def take_reports(self) -> list[tuple[AgentName, MoveReport]]:
        reports, self.reports = self.reports, []
        return reports

    def wait_reports(self, timeout_s: float) -> None:
        pass

    def losses(self) -> list[tuple[AgentName, str]]:
        lost, self.lost = self.lost, []
        return lost

    def lose(self, name: AgentName, reason: str = "its power is gone") -> None:
        if name in self.here:
            self.here.remove(name)
            self.lost.append((name, reason))

    def ended(self, epoch: int) -> set[AgentName]:
        """Who was told that a migration is over which leads to nothing."""
        return {n for n, o in self.orders if isinstance(o, MoveEnd) and o.frees == epoch}

    def _check(self, name: AgentName) -> None:
        if name not in self.here:
            raise AgentLostError(f"agent {name!r} is gone", name)


class Link:
    """A hot link to whoever is expected."""

    joined = True

    def take_hellos(self) -> None:
        pass


class Plans(Installer):
    """The plan in force; plans cost nothing."""

    def __init__(self, plan: Plan, control: Board) -> None:
        self.plan, self.epoch = plan, Epoch(1)
        self.carrier, self.coming = Carrier(), Carrier()
        self.withdrawn: list[Epoch] = []
        self.breaks = self.busy = False
        self.while_preparing: Callable[[], None] = lambda: None
        self._control = control

    @property
    def engine(self) -> Engine:
        if self.carrier.ended:
            raise PlanError("no plan is in force")
        return cast("Engine", self.carrier)

    @property
    def is_busy(self) -> bool:
        return self.busy

    def check(self, plan: Plan) -> None:
        pass

    def prepare(self, plan: Plan, kept: Collection[AgentName]) -> Prepared:
        epoch, self.coming = Epoch(self.epoch + 1 + len(self.withdrawn)), Carrier()
        told = {member.agent: cast("Any", epoch) for member in plan.members}
        self.while_preparing()
        engine = cast("Engine", self.coming)
        return Prepared(plan, epoch, told, cast("Any", Link()), lambda: self._checked(engine))

    def _checked(self, engine: Engine) -> Engine:
        if self.breaks:
            raise ZeroDivisionError("nobody thought of that")
        return engine

    def put(self, prepared: Prepared, engine: Engine) -> None:
        self.carrier.ended = True
        self.plan, self.epoch = prepared.plan, prepared.epoch
        self.carrier = cast("Carrier", engine)

    def withdraw(self, prepared: Prepared) -> None:
        self.coming.ended = True
        self.withdrawn.append(prepared.epoch)

    def drop(self) -> None:
        self.carrier.ended = True
        self.plan = None


class Bulk(BulkServer):
    """A relay that nobody needs; `passes` is the epoch whose rows may pass."""

    def __init__(self) -> None:
        self.passes: Epoch | None = None
        self.warmed: list[bytes] = []

    def grant_probe(self, token: bytes, key: str = "") -> None:
        self.warmed.append(token)

    def begin_move(self, *args: Any) -> None:
        self.passes = args[0]

    def end_move(self) -> None:
        self.passes = None


class House:
    """Everything that a migration touches; plan 1 is in force."""

    def __init__(self, before: Plan) -> None:
        self.board = Board()
        self.plans = Plans(before, self.board)
        self.texts = Texts(lambda: self.plans.engine, self._recover)
        self.bulk = Bulk()
        self.moves = Moves(RUN, self.plans, self.board, self.bulk, self.texts, geometry())

    def _recover(self, why: RemoteError) -> None:
        self.moves.abandon(str(why))
        self.plans.carrier.ended = True
        self.plans.carrier = Carrier()
        self.plans.plan = plan(a=4)

    def text(self, number: int, n_rows: int) -> Text:
        text = self.texts.new(KvId(number))
        text.open(100)
        for i in range(n_rows):
            text.step(ROW, i, ())
        return text

    def settle(self) -> Outcome:
        """Let the migration end, and say how."""
        for _ in range(100):
            self.moves.go_on()
            ended = self.moves.take_ended()
            if ended is not None:
                return ended.outcome
        raise AssertionError("it does not end")
