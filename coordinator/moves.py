"""Migrations of one coordinator, one at a time: begun, followed to their end, or given up.

`move` carries one out; this file puts the right plan into force when it ends.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from agent.bulk import BulkServer
from agent.ids import Epoch, RunId
from agent.share import KvFormat
from agent.window import NARROW_BYTES
from coordinator.control import Control
from coordinator.engine import Engine
from coordinator.identity import LinkSecrets
from coordinator.installer import Installer
from coordinator.migration import Migration, Pace
from coordinator.migration_events import Finished, Outcome
from coordinator.migration_parts import MoveParts, move_parts
from coordinator.move import WAIT_S, Move
from coordinator.plan import Plan
from coordinator.planner.cost import kv_token_bytes
from coordinator.texts import Texts
from kernels.errors import AgentLostError, HeadwiseError, PlanError
from kernels.layout import Geometry

__all__ = ["Moves"]

log = logging.getLogger(__name__)

# Part of an exchange for which a frame may have to wait behind rows that are copied.
ROWS_SHARE = 0.1
# No agent is to blame for what the coordinator does not read while a step keeps it.
MOVE_PACE = Pace(look_s=1.0)
# After a loss a reader waits: what does not come soon is computed again. Weights may have to come.
RESTORE_PACE = Pace(prepare_s=120.0, stall_s=5.0, look_s=1.0)


def rows_window_bytes(phase_s: float, bytes_per_s: float) -> int:
    """Return how many bytes of rows may be on their way while texts are written.

    Args:
        phase_s: what an exchange of a step takes.
        bytes_per_s: goodput of the slowest link.
    """
    return max(NARROW_BYTES, int(ROWS_SHARE * phase_s * bytes_per_s))


class Moves:
    """Moves the open texts from the plan in force to another one.

    Args:
        run_id: number of this run.
        installer: has the plan in force.
        control: carries orders and reports.
        bulk: passes rows on between agents.
        texts: those that move.
        geometry: of the model, which says how large a row is.

    Attributes:
        move: the migration that is under way; None = none is.
    """

    def __init__(
        self,
        run_id: RunId,
        installer: Installer,
        control: Control,
        bulk: BulkServer,
        texts: Texts,
        geometry: Geometry,
    ) -> None:
        self._run_id = run_id
        self._installer = installer
        self._control = control
        self._bulk = bulk
        self._texts = texts
        self._geometry = geometry
        self._ended: Finished | None = None
        self.move: Move | None = None

    @property
    def is_moving(self) -> bool:
        """Whether a migration is under way."""
        return self.move is not None

    def begin(self, plan: Plan) -> None:
        """Begin to move to another plan; see `Cluster.begin_move`."""
        installer = self._installer
        former, engine = installer.plan, installer.engine
        if self.move is not None or former is None:
            raise PlanError("another migration is under way; wait for its end")
        installer.check(plan)
        parts = move_parts(former, plan)
        if plan.kv != former.kv:
            _refuse(f"keys and values are {former.kv}, not {plan.kv}")
        if not parts.targets:
            _refuse("no atom changes its place")
        # Former losses are forgotten first: who is lost from here on ends the migration.
        self._ended = None
        self._control.losses()
        self._start(plan, parts, engine, MOVE_PACE)

    def _start(self, plan: Plan, parts: MoveParts, engine: Engine, pace: Pace) -> Move:
        """Begin to move texts from an engine's plan, whose epoch is the installer's."""
        installer, texts = self._installer, self._texts
        links = self._control.link_secrets(sorted(parts.old | parts.new))
        let_pass = self.rows_of(parts, plan.kv, engine)
        prepared = installer.prepare(plan, parts.kept)
        try:
            epoch, from_epoch = prepared.epoch, installer.epoch
            first_bytes = let_pass(epoch)
            now_s = time.monotonic()
            migration = Migration(self._run_id, from_epoch, epoch, parts, now_s, pace)
            self.move = texts.follower = move = Move(
                self._run_id, migration, prepared, parts, from_epoch, self._control, texts, engine,
                first_bytes,
            )  # fmt: skip
            log.info(
                "move begun epoch=%d from_epoch=%d groups=%d agents=%s texts=%d", epoch,
                from_epoch, parts.moved_groups(), ",".join(sorted(parts.new)), len(texts.here()),
            )  # fmt: skip
            move.begin()
            self._check_links(links)
        except BaseException:
            if not self.abandon("it could not begin"):
                installer.withdraw(prepared)
            raise
        return move

    def rows_of(
        self, parts: MoveParts, kv: KvFormat, engine: Engine
    ) -> Callable[[Epoch], Callable[[], int]]:
        """Return what lets the rows of a migration, or of a mirror, pass between its agents.

        That returns what says how much a target may ask for before an answer tells it.

        Raises:
            AgentLostError: one of them is gone.
        """
        names = sorted(parts.old | parts.new)
        links = self._control.link_secrets(names)
        peers = [(link.bulk_token, link.name, link.key) for link in links]
        goodput_bytes_per_s = self._control.link(names).bytes_per_s
        row_bytes = kv_token_bytes(self._geometry, kv)

        def window_bytes() -> int:
            return rows_window_bytes(engine.phase_s, goodput_bytes_per_s)

        def first_bytes() -> int:
            return window_bytes() // len(parts.targets) if self._installer.is_busy else 0

        def let_pass(epoch: Epoch) -> Callable[[], int]:
            for link in links:
                # Who gets rows may warm its link up, which must not disturb a text.
                if link.name in parts.targets and not self._installer.is_busy:
                    self._bulk.grant_probe(link.bulk_token, link.key)
            self._bulk.begin_move(epoch, parts.shares, row_bytes, peers, window_bytes)
            return first_bytes

        return let_pass

    def end_rows(self) -> None:
        """Let the rows of a mirror pass no more, unless a migration has taken its place."""
        if not self.is_moving:
            self._bulk.end_move()

    def restore(
        self, plan: Plan, parts: MoveParts, engine: Engine, check: Callable[[], None]
    ) -> str:
        """Move texts off a plan that has lost members, and wait until all have changed over.

        Each text's tokens are those that all its sources have; no other plan is in force.

        Args:
            plan: the plan to come.
            parts: what its members get from where.
            engine: of the plan that is broken.
            check: called while it waits; may raise to end it.

        Returns:
            "" when the plan is in force; else why not, and what was begun is undone.
        """
        try:
            move = self._start(plan, parts, engine, RESTORE_PACE)
        except HeadwiseError as e:
            return str(e)
        ended: Finished | None = None
        try:
            while ended is None and not move.is_past:
                check()
                self._control.wait_reports(WAIT_S)
                ended = move.poll()
        finally:
            # What all texts have followed is put into force by that.
            given_up = self.abandon(ended.reason if ended is not None else "it was interrupted")
            self._ended = None
        return (ended.reason if ended is not None else "") or "no reason known" if given_up else ""

    def _check_links(self, before: Sequence[LinkSecrets]) -> None:
        """Raise AgentLostError if an agent has dialled anew before it was told of its part.

        From then on that is a loss. Before, it held nothing, and nobody would ever hear of it on
        the links of which the other agents and the hot socket know.
        """
        for link in before:
            try:
                present = self._control.link_secrets([link.name])
            except AgentLostError:
                continue  # gone: that is told as a loss
            if present != [link]:
                what = f"agent {link.name!r} dialled anew when the move began"
                raise AgentLostError(what, link.name)

    def go_on(self) -> None:
        """Let a migration go on; when it ends, put the right plan into force."""
        move = self.move
        ended = move.poll() if move is not None else None
        if move is not None and ended is not None:
            self._end(move, ended)

    def _end(self, move: Move, ended: Finished) -> None:
        self._ended = ended
        log.info(
            "move %s epoch=%d hold_ms=%.1f%s", ended.outcome.value, move.epoch,
            1e3 * move.longest_hold_s, f": {ended.reason}" if ended.reason else "",
        )  # fmt: skip
        if ended.outcome is Outcome.MOVED and move.new_engine is not None:
            self._forget()
            self._installer.put(move.prepared, move.new_engine)
            return
        self.abandon(ended.reason)
        if ended.outcome is Outcome.BROKEN:
            self._installer.drop()

    def take_ended(self) -> Finished | None:
        """Return how the last migration ended, once."""
        ended, self._ended = self._ended, None
        return ended

    def abandon(self, reason: str) -> bool:
        """End a migration at once; texts that have changed over have lost their plan.

        Returns whether there was one. One that all texts have followed is past that: its plan is
        put into force, see `take_ended`.
        """
        move = self.move
        if move is None:
            return False
        if move.is_past:
            self._end(move, Finished(Outcome.MOVED, ""))
            return False
        if move.finished is None:
            log.warning("move abandoned epoch=%d: %s", move.epoch, reason)
        if move.finished is None or move.finished.outcome is Outcome.BROKEN:
            move.tell_off()
        self._forget()
        self._installer.withdraw(move.prepared)
        return True

    def _forget(self) -> None:
        if self.move is not None:
            self.move.end()
        self._texts.follower = self.move = None
        self._bulk.end_move()


def _refuse(what: str) -> NoReturn:
    raise PlanError(f"nothing can be moved to that plan: {what}; install it instead")
