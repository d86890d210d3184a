"""Whether to change a running placement, and to what: gains against the price of moving. Pure.

A candidate x' with token time T(x') is worth, in seconds of tokens,

    J = horizon * (1 - T(x') / T(x)) - cost

(`candidate.py`). The best candidate with J > 0 and a gain above 4 % is taken (reference/papers.md
4.4.5). Agents that are barred or over-full force the best change whatever its gain. Where atoms
lost their agent no token flows before they are copied: the change that waits least is taken, and
what is left to gain is a re-plan of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from coordinator.plan import Plan
from coordinator.planner.candidate import LEAST_GAIN, Candidate, worth_s
from coordinator.planner.change import (
    Setting,
    over_full_between_bytes,
    over_full_bytes,
    same_counts,
)
from coordinator.planner.cost import (
    DEFAULT_COSTS,
    AtomSizes,
    Costs,
    Counts,
    Link,
    Offer,
    PlanRequest,
    TokenTime,
    atom_sizes,
    kv_token_bytes,
    rates,
    slowest_link,
    stages_of,
    token_time,
)
from coordinator.planner.decision import Conditions, Option, Replan
from coordinator.planner.holdings import (
    NOBODY,
    Resident,
    holdings_of,
    plan_of,
    shifted,
)
from coordinator.planner.moves import (
    MovePrice,
    Network,
    guess_traffic,
    list_moves,
    move_price,
    traffic,
)
from coordinator.planner.proposals import Asked, proposals
from coordinator.planner.subset import Subsets
from kernels.errors import ResourceError
from kernels.layout import Geometry

__all__ = ["LEAST_GAIN", "Conditions", "Option", "Replan", "replan"]

# A board that has come is worth its moves for at least so long: it comes to stay.
JOIN_HORIZON_S = 300.0
# Waits that differ by less are alike.
AS_SOON_S = 0.02
# So many of the candidates that look best are worked out atom by atom, until one pays.
N_EXACT = 3
# Classes without KV need no copy where weights are resident.
AT_ONCE = ("MLP and vocabulary", "MLP only")


def replan(
    present: Plan,
    geometry: Geometry,
    offers: Sequence[Offer],
    request: PlanRequest,
    link: Link,
    now: Conditions,
    costs: Costs = DEFAULT_COSTS,
) -> Replan:
    """Return the best change of a running plan, which may be none.

    Args:
        present: the plan in force; wire, KV type and context stay as they are.
        geometry: the model's shapes.
        offers: agents that are here: forecast memory and present rates. Members of the plan that
            are missing are lost.
        request: what the plan must serve; its place is not looked at.
        link: the way between coordinator and agents that do not offer their own.
        now: horizon, cached tokens, residency and the like.
        costs: fixed costs of tokens.

    Raises:
        ResourceError: the present plan cannot go on and no other fits: what is missing.
    """
    return _Search(present, geometry, offers, request, link, now, costs).result()


class _Search:
    """One re-plan: candidates by counts first, the most promising atom by atom."""

    def __init__(
        self,
        present: Plan,
        geometry: Geometry,
        offers: Sequence[Offer],
        request: PlanRequest,
        link: Link,
        now: Conditions,
        costs: Costs,
    ) -> None:
        request = replace(request, wire=present.wire, kv=present.kv)
        self._present, self._geometry, self._offers = present, geometry, offers
        self._request, self._link, self._now, self._costs = request, link, now, costs
        self._asked = Asked(geometry, offers, request, link, costs)
        self._names = [o.name for o in offers]
        self._sizes: AtomSizes = atom_sizes(geometry, request)
        self._token_bytes = kv_token_bytes(geometry, request.kv)
        n = len(offers)
        self._setting = Setting(
            self._sizes,
            rates(offers),
            np.array([o.memory_bytes for o in offers], np.int64),
            np.array([o.name not in now.barred | now.cordoned for o in offers], np.bool_),
            np.array([o.name not in now.barred for o in offers], np.bool_),
        )
        self._before = holdings_of(present, geometry, self._names)
        self._held = self._before.counts(n)
        self._resident = now.resident or Resident.just(self._before, n)
        self._network = now.network or Network.of([o.link or link for o in offers])
        self._spare = self._resident.spare(self._held)
        self._lost = any(bool((part == NOBODY).any()) for part in self._before)
        self._present_time = None if self._lost else self._time_of_present()
        self._no_room = ""
        self._joined = np.array([o.name in now.joined for o in offers], np.bool_)

    def result(self) -> Replan:
        """Find the best candidate and say what it takes."""
        forced = self._forced()
        found = self._candidates(forced)
        ranked = sorted(found, key=lambda c: -c.worth_s)
        if forced == "lost" and found:
            return self._resume(found)
        taken = None
        for candidate in ranked[:N_EXACT]:
            if candidate.price is None:
                break
            self._work_out(candidate, self._reference(found))
            if not forced and not self._pays(candidate):
                continue
            # Guesses are hardly ever too low: what looked worse would be worse.
            taken = candidate
            break
        if taken is None:
            if forced:
                raise ResourceError(self._shortage())
            return self._stay(ranked)
        first = None if forced else self._first_part(taken, found)
        return self._take(first or taken, ranked, forced, again=first is not None)

    def _resume(self, found: list[Candidate]) -> Replan:
        """Take what lets tokens flow soonest again, and of equals the fastest."""
        for candidate in found:
            self._work_out(candidate, self._reference(found))
        ranked = sorted(found, key=lambda c: (c.waits_s, c.time.total_s))
        least_s = ranked[0].waits_s + AS_SOON_S
        taken = min((c for c in found if c.waits_s <= least_s), key=lambda c: c.time.total_s)
        fastest_s = min(c.time.total_s for c in found)
        again = fastest_s < (1.0 - LEAST_GAIN) * taken.time.total_s
        return self._take(taken, ranked, "lost", again)

    def _first_part(self, taken: Candidate, found: list[Candidate]) -> Candidate | None:
        """Return what of a change can be had at once, if waiting for the copies costs more."""
        reference_s = self._reference(found)
        by_name = {c.name: c for c in found}
        for c in (by_name[name] for name in AT_ONCE if name in by_name):
            if c is taken or c.price is None or c.price.copy_s > 0 or taken.price is None:
                continue
            price = self._work_out(c, reference_s)
            gained_s = taken.price.copy_s * (1.0 - c.time.total_s / reference_s)
            if price.copy_s == 0 and gained_s > price.stall_s and self._pays(c):
                return c
        return None

    def _forced(self) -> str:
        """Return why the present plan cannot stay, or nothing."""
        barred = ~self._setting.may_keep
        if self._lost:
            return "lost"
        if any(bool(c[..., barred].any()) for c in self._held[:3]):
            return "drain"
        if (self._over(self._held) > 0).any():
            return "memory"
        return ""

    def _candidates(self, forced: str) -> list[Candidate]:
        """Return the candidates that are legal and, unless forced, faster."""
        found = [
            Candidate(name, counts, self._time(counts))
            for name, counts in proposals(
                self._held, self._asked, self._setting, forced=bool(forced)
            )
            if not same_counts(counts, self._held)
            and not (self._over(counts) > 0).any()
            and self._has_room(counts)
        ]
        reference_s = self._reference(found)
        for c in found:
            if forced or c.time.total_s < (1.0 - LEAST_GAIN) * reference_s:
                c.price = self._guess(c.counts)
                c.worth_s = self._worth(c, c.price, reference_s)
        return found

    def _over(self, counts: Counts) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return over_full_bytes(counts, self._setting)

    def _has_room(self, counts: Counts) -> bool:
        """Whether all agents have room for what they hold while it is moved to."""
        if not self._now.both_at_once:
            return True
        over = over_full_between_bytes(self._held, counts, self._setting)
        j = int(over.argmax())
        if over[j] > 0:
            self._no_room = (
                f"agent {self._names[j]!r} would need {over[j]} bytes more than the "
                f"{self._setting.memory_bytes[j]} that it offers while weights and KV pools of "
                f"both plans are there"
            )
        return bool(over[j] <= 0)

    def _time(self, counts: Counts) -> TokenTime:
        users = counts.groups.any(0) | counts.columns.any(0) | (counts.vocab > 0)
        kept = np.flatnonzero(users).tolist()
        return self._token_time(counts.only(kept), kept)

    def _time_of_present(self) -> TokenTime:
        index = {name: i for i, name in enumerate(self._names)}
        ranks = [index[m.agent] for m in self._present.members]
        groups, columns, vocab, _ = self._held
        stages = stages_of(self._present)
        counts = Counts(groups[:, ranks], columns[:, ranks], vocab[ranks], stages)
        return self._token_time(counts, ranks)

    def _token_time(self, counts: Counts, ranks: list[int]) -> TokenTime:
        """Return the token time of counts whose ranks are these offers."""
        link = slowest_link(self._link, (self._offers[j] for j in ranks))
        return token_time(counts, self._sizes, self._setting.bytes_per_s[ranks], link, self._costs)

    def _reference(self, found: list[Candidate]) -> float:
        """Return the token time that gains are counted from."""
        if self._present_time is not None:
            return self._present_time.total_s
        return max((c.time.total_s for c in found), default=math.inf)

    def _guess(self, counts: Counts) -> MovePrice:
        guessed = guess_traffic(
            self._held, counts, self._spare, self._sizes,
            self._token_bytes, self._now.n_tokens, self._now.costs.last_rows,
        )  # fmt: skip
        return move_price(guessed, self._network, self._now.costs)

    def _worth(self, candidate: Candidate, price: MovePrice, reference_s: float) -> float:
        """Return J, in seconds of tokens of the reference."""
        joins = any(bool(c[..., self._joined].any()) for c in candidate.counts[:3])
        horizon_s = self._now.horizon_share * self._now.horizon_s
        horizon_s = max(horizon_s, JOIN_HORIZON_S if joins else 0.0)
        return worth_s(
            horizon_s, candidate.time.total_s / reference_s, price,
            self._now.costs.slow_share, self._now.back_share,
        )  # fmt: skip

    def _work_out(self, candidate: Candidate, reference_s: float) -> MovePrice:
        """Assign atoms, and price them exactly."""
        after = shifted(self._before, candidate.counts, self._resident)
        exact = traffic(
            self._before, after, self._resident, self._sizes,
            self._token_bytes, self._now.n_tokens, self._now.costs.last_rows,
        )  # fmt: skip
        candidate.after = after
        candidate.price = move_price(exact, self._network, self._now.costs)
        candidate.worth_s = self._worth(candidate, candidate.price, reference_s)
        return candidate.price

    def _pays(self, candidate: Candidate) -> bool:
        assert self._present_time is not None
        gain = 1.0 - candidate.time.total_s / self._present_time.total_s
        return candidate.worth_s > 0 and gain > LEAST_GAIN

    def _stay(self, ranked: list[Candidate]) -> Replan:
        assert self._present_time is not None
        time = self._present_time
        stay = Option("stay", time.total_s, 0, MovePrice(0.0, 0.0), 0.0)
        options = (stay, *self._options(ranked, None))
        return Replan("stay", self._present, (), time, time, MovePrice(0.0, 0.0), options)

    def _take(self, taken: Candidate, ranked: list[Candidate], forced: str, again: bool) -> Replan:
        assert taken.after is not None
        assert taken.price is not None
        kv_bytes = self._now.n_tokens * self._token_bytes
        moves = list_moves(
            self._before, taken.after, self._names, self._resident, self._sizes, kv_bytes
        )
        plan = plan_of(taken.after, self._names, self._present)
        uses_new = any(m.agent in self._now.joined for m in plan.members)
        reason = forced or ("join" if uses_new else "faster")
        return Replan(
            reason, plan, moves, self._present_time, taken.time, taken.price,
            self._options(ranked, taken), again,
        )  # fmt: skip

    def _options(self, ranked: list[Candidate], taken: Candidate | None) -> tuple[Option, ...]:
        """Return the candidates as plain data, the one taken first."""
        options = []
        for c in ranked:
            if c is taken:
                continue
            c.rejected = "worth less" if taken is not None else "does not pay"
            options.append(c.option(self._held))
        first = [] if taken is None else [taken.option(self._held)]
        return (*first, *options)

    def _shortage(self) -> str:
        if self._no_room:
            return f"the plan in force cannot stay and cannot be moved off: {self._no_room}"
        others = self._now.barred | self._now.cordoned
        here = [o for o in self._offers if o.name not in others]
        if not here:
            return "no agent is left that may hold the model: start agents with `headwise agent`"
        return Subsets(self._geometry, here, self._request, self._link, self._costs).shortage()
