"""The mirror of the plan in force: begun when texts are written, used when a board is lost.

It ends with its plan, with a migration (agents take part in one thing at a time), and when memory
gets short; then a new one is begun. After a loss the survivors keep their rows and their mirrors
until the next plan has them, or until it is clear that computing all again is the faster way.
One thread uses this, the one that owns the hot link.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from agent.ids import AgentName, RunId
from coordinator.control import Control
from coordinator.engine import Engine
from coordinator.forecast import forecast_of
from coordinator.installer import Installer
from coordinator.migration_parts import MoveParts
from coordinator.mirror import Mirror
from coordinator.mirroring import (
    Mirroring,
    Prospect,
    choose_mirrors,
    mirror_parts,
    restore_parts,
)
from coordinator.moves import Moves
from coordinator.plan import Plan
from coordinator.planner.cost import kv_token_bytes
from coordinator.status import MirrorStatus
from coordinator.texts import Text, Texts
from kernels.errors import HeadwiseError, ResourceError
from kernels.layout import Geometry

__all__ = ["Mirrors"]

log = logging.getLogger(__name__)

# Until a mirror that could not be, or that failed, is tried again.
RETRY_S = 10.0
# How long an agent that failed is not asked again: what ailed it may have passed.
REFUSED_S = 300.0
# How often the memory of who mirrors is looked at.
LOOK_S = 0.5
# How long survivors keep their rows while no other plan is found.
KEEP_S = 20.0


class _Broken(NamedTuple):
    """A plan that has lost members, whose rows the others still hold, and its mirror."""

    plan: Plan
    engine: Engine
    mirror: Mirror
    until_s: float


class Mirrors:
    """Keeps the plan in force mirrored, as far as there is room.

    Args:
        run_id: number of this run.
        wanted: False: there are never any.
        installer: has the plan in force.
        moves: migrations, which go before.
        control: carries orders and reports.
        texts: those that are mirrored.
        geometry: of the model.
    """

    def __init__(
        self,
        run_id: RunId,
        wanted: bool,
        installer: Installer,
        moves: Moves,
        control: Control,
        texts: Texts,
        geometry: Geometry,
    ) -> None:
        self._run_id = run_id
        self._wanted = wanted
        self._installer = installer
        self._moves = moves
        self._control = control
        self._texts = texts
        self._geometry = geometry
        self._mirror: Mirror | None = None
        self._broken: _Broken | None = None
        self._not_before_s = self._look_s = 0.0
        # Who has failed, and until when it is not asked.
        self._refused: dict[AgentName, float] = {}
        self._told = ""
        self._why = "no text is written"

    def view(self) -> MirrorStatus | None:
        """Return how it is, for people; None: nobody asked for mirrors."""
        if not self._wanted:
            return None
        mirror = self._mirror
        if mirror is None:
            return MirrorStatus(None, "nobody", self._why)
        without = mirror.mirroring.without
        why = f"no room for that of {', '.join(without)}" if without else ""
        return MirrorStatus(mirror.lag_tokens, str(mirror.mirroring), why)

    # While all is well.

    def go_on(self) -> None:
        """Let the mirror of the plan in force go on, or begin one; called between steps."""
        if not self._wanted or self._moves.is_moving or self._installer.plan is None:
            return
        if self._broken is not None:
            return  # its rows wait for the next plan
        now_s, mirror = time.monotonic(), self._mirror
        if mirror is None or not self._is_on(mirror):
            self.forget()
            if now_s >= self._not_before_s:
                self._begin(self._installer.plan, now_s)
            return
        ended = mirror.poll()
        if ended is not None:
            if ended.culprit:
                self._refused[ended.culprit] = now_s + REFUSED_S
            self._end(f"it failed: {ended.reason}", now_s)
        elif now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            short = self._short(mirror.mirroring)
            if short:
                self._end(short, now_s)

    def look(self) -> None:
        """Let a mirror go on while no text is open; while one is written its steps see to that.

        Its pools are memory that no plan knows of, and the last words on a text are still to come.
        """
        if self._texts.here():
            return
        self.go_on()
        now_s, mirror = time.monotonic(), self._mirror
        lapsed = [name for name, until_s in self._refused.items() if now_s >= until_s]
        for name in lapsed:
            del self._refused[name]
        if lapsed and mirror is not None and mirror.mirroring.without:
            # It holds nothing just now; the next text may find one who mirrors the others, too.
            self.forget()

    def _is_on(self, mirror: Mirror) -> bool:
        """Whether a mirror is that of the plan in force, and hears of the texts."""
        same = mirror.from_epoch == self._installer.epoch
        # A migration that could not begin after all has taken its place.
        return same and self._texts.follower is mirror

    def _begin(self, plan: Plan, now_s: float) -> None:
        engine = self._installer.engine
        here = [text for text in self._texts.here() if text.engine is engine]
        if not here:
            return
        try:
            mirroring = self._choose(plan, now_s)
            if not mirroring.holder_of:
                raise ResourceError(_nobody(plan))
            parts = mirror_parts(plan, mirroring.holder_of)
            let_pass = self._moves.rows_of(parts, plan.kv, engine)
        except HeadwiseError as e:
            self._why, self._not_before_s = str(e), now_s + RETRY_S
            self._tell(f"mirror none epoch={self._installer.epoch}: {e}")
            return
        epoch = self._installer.next_epoch()
        let_pass(epoch)
        self._mirror = mirror = Mirror(
            self._run_id, epoch, self._installer.epoch, mirroring, parts, self._control, engine
        )
        self._texts.follower = mirror
        mirror.begin(here)
        log.info("mirror begun epoch=%d from_epoch=%d: %s", epoch, mirror.from_epoch, mirroring)
        if mirroring.without:
            self._tell(f"mirror epoch={epoch}: no room for that of {', '.join(mirroring.without)}")

    def _choose(self, plan: Plan, now_s: float) -> Mirroring:
        """Choose who mirrors whom, by what is free now."""
        pools, weights = self._installer.pool_bytes(plan), self._installer.weights_bytes()
        offers = {o.name: o.memory_bytes for o in self._control.offers()}
        free = {
            name: offers[name] - n_bytes - weights[name]
            for name, n_bytes in pools.items()
            if name in offers
        }
        refused = {name for name, until_s in self._refused.items() if now_s < until_s}
        return choose_mirrors({x: n for x, n in pools.items() if n}, free, refused)

    def _short(self, mirroring: Mirroring) -> str:
        """Return who has no memory for a mirror any more, or ""."""
        held = self._mirror_bytes(mirroring)
        for agent in self._control.agents():
            forecast = forecast_of(agent) if agent.name in held else None
            if forecast is None:
                continue
            forecast = forecast._replace(held_bytes=forecast.held_bytes + held[agent.name])
            if forecast.is_short:
                return str(forecast)
        return ""

    def _mirror_bytes(self, mirroring: Mirroring, plan: Plan | None = None) -> Counter[AgentName]:
        """Return what mirrors take on each agent."""
        plan = plan or self._installer.plan
        pools = {} if plan is None else self._installer.pool_bytes(plan)
        held: Counter[AgentName] = Counter()
        for x, holder in mirroring.holder_of.items():
            held[holder] += pools.get(x, 0)
        return held

    def _end(self, why: str, now_s: float) -> None:
        """End a mirror in mid-plan; another one may be begun later."""
        self._tell(f"mirror ended: {why}")
        self._why = why
        self.forget()
        self._not_before_s = now_s + RETRY_S

    def _tell(self, text: str) -> None:
        """Log something once, and not with every try."""
        if text != self._told:
            log.warning("%s", text)
        self._told = text

    def forget(self) -> None:
        """End the mirror; survivors' rows of a broken plan are given up with it."""
        broken, self._broken = self._broken, None
        mirror, self._mirror = self._mirror, None
        mirror = mirror or (broken.mirror if broken is not None else None)
        if mirror is None:
            return
        if self._texts.follower is mirror:
            self._texts.follower = None
        mirror.tell_off()
        self._moves.end_rows()

    def plan_changes(self) -> None:
        """Take in that a migration has begun, or that another plan is put into force."""
        self._refused.clear()
        self._not_before_s = 0.0
        self._why = "the placement is changing"
        self.forget()

    # After a loss.

    @property
    def is_stale(self) -> bool:
        """Whether survivors have kept what they hold for too long: no other plan was found."""
        return self._broken is not None and time.monotonic() > self._broken.until_s

    def hold(self) -> bool:
        """Let survivors keep what they have of the plan in force, which is of no use any more.

        Returns whether there is anything worth keeping; if not, nothing is done.
        """
        mirror, plan = self._mirror, self._installer.plan
        if self._broken is not None:
            return True
        if not self._wanted or plan is None:
            return False
        engine = self._installer.engine
        if not any(text.engine is engine and text.n_tokens for text in self._texts.here()):
            return False
        if mirror is None or not self._is_on(mirror):
            log.info("recovery from=prefill: there is no mirror, %s", self._why)
            return False
        if not mirror.take_in():
            log.info("recovery from=prefill: the mirror has failed and is being given up")
            return False
        if self._texts.follower is mirror:
            self._texts.follower = None
        self._mirror = None
        self._broken = _Broken(plan, engine, mirror, time.monotonic() + KEEP_S)
        self._installer.suspend()
        return True

    def restore(self, plan: Plan, check: Callable[[], None]) -> bool:
        """Put a plan into force with the rows that are left of the broken one, if that pays.

        Args:
            plan: of who is left.
            check: called while rows are copied; may raise to end it.

        Returns:
            False: nothing was done but to free what was held; computing again is faster, or the
            only way.
        """
        broken, why_not = self._broken, "it was interrupted"
        if broken is None:
            return False
        try:
            why_not = self._try(broken, plan, check)
            return not why_not
        finally:
            self.plan_changes()
            if why_not:
                log.info("recovery from=prefill: %s", why_not)
                self._installer.drop()

    def _try(self, broken: _Broken, plan: Plan, check: Callable[[], None]) -> str:
        """Return why it cannot be done, "" = it is."""
        if self.is_stale:
            return "it took too long to find another plan"
        if plan.kv != broken.plan.kv:
            return f"keys and values were {broken.plan.kv}"
        # Forgotten first: who is lost from here on ends it.
        self._control.losses()
        epoch = broken.mirror.from_epoch
        left = {a.name for a in self._control.agents() if a.alive and a.holds(epoch)}
        left &= {member.agent for member in broken.plan.members}
        mirroring = broken.mirror.mirroring
        parts = restore_parts(broken.plan, left, mirroring, broken.mirror.epoch, plan)
        if parts is None:
            return "nobody has a second copy of what was lost"
        texts = [text for text in self._texts.here() if text.engine is broken.engine]
        n_rows = sum(text.n_tokens for text in texts)
        kept = {text.kv_id: self._n_kept(text, broken, left) for text in texts}
        prospect = self._prospect(parts, plan, n_rows, sum(kept.values()))
        if not prospect.copying_pays:
            return (
                f"copied in {prospect.copy_s:.2f} s and {prospect.tail_s:.2f} s for the rest, "
                f"computed in {prospect.prefill_s:.2f} s"
            )
        try:
            self._installer.check(plan)
            self._installer.check_room(
                broken.plan, plan, (), self._mirror_bytes(mirroring, broken.plan)
            )
        except HeadwiseError as e:
            return str(e)
        for text in texts:
            text.n_tokens = kept[text.kv_id]
        began_s = time.monotonic()
        why_not = self._moves.restore(plan, parts, broken.engine, check)
        if not why_not:
            log.info(
                "recovery from=mirror epoch=%d rows=%d tail=%d predicted_s=%.2f prefill_s=%.2f "
                "seconds=%.2f", self._installer.epoch, sum(kept.values()),
                n_rows - sum(kept.values()), prospect.copy_s + prospect.tail_s,
                prospect.prefill_s, time.monotonic() - began_s,
            )  # fmt: skip
        return why_not

    def _n_kept(self, text: Text, broken: _Broken, left: set[AgentName]) -> int:
        """Return how many rows of a text all have, that are left or that mirror the lost."""
        holder_of, mirror = broken.mirror.mirroring.holder_of, broken.mirror
        used = [m for x, m in holder_of.items() if x not in left]
        return min([text.n_tokens, *(mirror.rows_at(text.kv_id, m) for m in used)])

    def _prospect(self, parts: MoveParts, plan: Plan, n_rows: int, n_kept: int) -> Prospect:
        row_bytes = parts.moved_groups() * kv_token_bytes(self._geometry, plan.kv)
        link = self._control.link(sorted(parts.new))
        row_s = self._texts.row_s
        return Prospect.of(n_rows, n_kept, n_kept * row_bytes, row_s, link.bytes_per_s)


def _nobody(plan: Plan) -> str:
    """Return why nobody mirrors anything."""
    if len(plan.members) == 1:
        return "one agent alone writes, and only members of a plan mirror"
    return "no agent has room for a second copy of another's keys and values"
