"""One plan at a time for the texts of a cluster, and how they get from one to the next.

A plan takes over while nothing is written, or texts move to it, or it comes after one that has
lost a member: then with the rows that are left, or without any. `Cluster` has one of these.
"""

from collections.abc import Callable

from agent.ids import AgentName, RunId
from agent.share import KvFormat, WireFormat
from coordinator.channels import Channels
from coordinator.installer import Installer
from coordinator.migration_events import Finished
from coordinator.mirrors import Mirrors
from coordinator.moves import Moves
from coordinator.plan import Plan
from coordinator.planner.place import Place
from coordinator.texts import Texts
from kernels.errors import AgentLostError, RemoteError
from weights.directory import ModelDirectory

__all__ = ["Plans"]


class Plans:
    """Puts plans into force.

    Args:
        run_id: number of this run.
        directory: the model.
        channels: to the agents.
        texts: those that are written.
        lost_reason: see `HotSocket.expect`.
        end_texts: ends all texts.
        check: called while rows are awaited; may raise to end the text being written.
        context_tokens, wire, kv, place, alike: see `Installer`.
        mirror: whether to keep a second copy of keys and values.

    Attributes:
        installer: what puts plans into force.
        moves: migrations to other plans.
        mirrors: the second copy of keys and values.
    """

    def __init__(
        self,
        run_id: RunId,
        directory: ModelDirectory,
        channels: Channels,
        texts: Texts,
        lost_reason: Callable[[AgentName], str],
        end_texts: Callable[[], None],
        check: Callable[[], None],
        *,
        context_tokens: int,
        wire: WireFormat,
        kv: KvFormat,
        place: Place,
        alike: bool,
        mirror: bool,
    ) -> None:
        self._end_texts = end_texts
        self._check = check
        control, bulk, geometry = channels.control, channels.bulk, directory.geometry
        self.installer = Installer(
            directory, control, channels.hot, bulk, run_id, lost_reason,
            context_tokens=context_tokens, wire=wire, kv=kv, place=place, alike=alike,
        )  # fmt: skip
        self.moves = Moves(run_id, self.installer, control, bulk, texts, geometry)
        self.mirrors = Mirrors(run_id, mirror, self.installer, self.moves, control, texts, geometry)

    def install(self, plan: Plan, end_texts: bool) -> None:
        """Put a plan into force and wait until every member is ready; see `Cluster.install`."""
        mirrors = self.mirrors
        if not end_texts and mirrors.hold() and mirrors.restore(plan, self._check):
            return
        self.installer.install(plan, before=lambda: self._leave(end_texts))

    def drop(self, end_texts: bool, keep_rows: bool) -> None:
        """Let every agent free what it holds of the plan in force; see `Cluster.drop_plan`."""
        if keep_rows and not end_texts and self.mirrors.hold():
            return
        self._leave(end_texts)
        self.installer.drop()

    def distrust(self, why: RemoteError) -> None:
        """Take in what made a plan useless: nothing is copied of what may be wrong."""
        if not isinstance(why, AgentLostError):
            # Rows of an agent whose numbers cannot be right are no better, wherever they are.
            self.mirrors.plan_changes()

    def begin_move(self, plan: Plan) -> None:
        """Begin to move to another plan; see `Cluster.begin_move`."""
        self.moves.begin(plan)
        self.mirrors.plan_changes()

    def go_on(self) -> None:
        """Let migration and mirror go on."""
        self.moves.go_on()
        self.mirrors.go_on()

    def poll_move(self) -> Finished | None:
        """Let a migration go on, or an idle mirror; return how the migration ended, once."""
        if self.mirrors.is_stale:
            self.drop(end_texts=False, keep_rows=False)
        self.moves.go_on()
        self.mirrors.look()
        return self.moves.take_ended()

    def _leave(self, end_texts: bool) -> None:
        self.moves.abandon("the plan that it began with ends")
        self.mirrors.plan_changes()
        if end_texts:
            self._end_texts()
