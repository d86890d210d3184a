"""Which agents take part: more boards help until their exchanges cost more than they read. Pure.

By falling speed: the best prefix or single agent, then drops, joins and swaps of one agent while
they help (reference/papers.md 4.4). Each subset is filled by `fill` and judged by `cost`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from agent.ids import AgentName
from coordinator.planner.cost import (
    Costs,
    Counts,
    Link,
    Offer,
    PlanRequest,
    atom_sizes,
    rates,
    slowest_link,
    token_time,
)
from coordinator.planner.fill import Fill
from kernels.layout import Geometry

__all__ = ["Alternative", "Chosen", "Subsets"]

# Joins, drops and swaps are tried with so many of the fastest outside and slowest inside.
MAX_NEIGHBOURS = 8
MAX_ROUNDS = 4
# While tokens flow a plan must be found in milliseconds.
QUICK_NEIGHBOURS = 1
QUICK_STEP = 3
# Fills of each subset where memory is scarce, and of the best one in the end.
QUICK_FILLS = 1
LAST_FILLS = 2
# So many of the best subsets are filled exactly.
N_REFINED = 3


@dataclass(frozen=True)
class Alternative:
    """A subset of agents that was considered; `rejected` is empty for the chosen one.

    `token_s` is None where the model does not fit.
    """

    n_agents: int
    names: tuple[AgentName, ...]
    token_s: float | None
    rejected: str


@dataclass(frozen=True)
class Chosen:
    """A subset that holds the model: offers by index, rising, and what each one holds."""

    members: tuple[int, ...]
    counts: Counts
    token_s: float


class Subsets:
    """The search over subsets of the offers; remembers what it has tried.

    Args:
        geometry: the model's shapes.
        offers: the agents, in the order of future ranks.
        request: what to serve.
        link: the way between coordinator and agents that do not offer their own.
        costs: fixed costs.
    """

    def __init__(
        self,
        geometry: Geometry,
        offers: Sequence[Offer],
        request: PlanRequest,
        link: Link,
        costs: Costs,
    ) -> None:
        self._geometry = geometry
        self._offers = offers
        self._request = request
        self._link = link
        self._costs = costs
        self._sizes = atom_sizes(geometry, request)
        self._rates = rates(offers)
        # Of two equally fast agents the one with more memory first.
        order = sorted(
            range(len(offers)), key=lambda j: (-self._rates[j], -offers[j].memory_bytes, j)
        )
        self._by_speed = tuple(order)
        self._tried: dict[tuple[int, ...], Chosen | None] = {}
        self._most_fills: int | None = None

    def best(self) -> Chosen | None:
        """Return the fastest subset found, or None if the model fits on none."""
        best = self._fastest([*self._prefixes(), *((j,) for j in self._by_speed)], None)
        self._improved(best, MAX_ROUNDS, MAX_NEIGHBOURS)
        return self._refined()

    def quick(self, members: Iterable[tuple[int, ...]] = ()) -> Chosen | None:
        """Return a good subset in a fraction of the time of `best`.

        Of the prefixes and the given subsets, improved by a few neighbours; filled roughly unless
        nothing else holds the model.
        """
        self._most_fills = QUICK_FILLS
        # Of single agents that hold the model the fastest is best.
        singles = ((j,) for j in self._by_speed)
        alone = next((s for s in singles if self._fastest([s], None) is not None), None)
        best = self._fastest([*members, *([alone] if alone else [])], None)
        prefixes = self._prefixes()
        # Time falls and then rises with their length: looked at from afar, then near the best.
        for step in (QUICK_STEP, 1) if len(prefixes) > 2 * QUICK_STEP else (1,):
            best = self._fastest(prefixes[step - 1 :: step] or prefixes, best)
            if best is not None:
                k = len(best.members)
                prefixes = prefixes[max(0, k - QUICK_STEP) : k + QUICK_STEP - 1]
        best = self._improved(best, 1, QUICK_NEIGHBOURS)
        if best is None:
            return self._refined()
        self._most_fills = LAST_FILLS
        last = self._choose(best.members)
        return last if last is not None and last.token_s < best.token_s else best

    def _prefixes(self) -> list[tuple[int, ...]]:
        return [self._by_speed[:k] for k in range(1, len(self._by_speed) + 1)]

    def _improved(self, best: Chosen | None, n_rounds: int, n_neighbours: int) -> Chosen | None:
        """Go from neighbour to neighbour while they are faster."""
        for _ in range(n_rounds):
            better = (
                None if best is None else self._fastest(self._neighbours(best, n_neighbours), best)
            )
            if better is best:
                break
            best = better
        return best

    def _refined(self) -> Chosen | None:
        """Fill the best few subsets exactly (or all agents, if none holds the model yet)."""
        found = [(c.token_s, members) for members, c in self._tried.items() if c is not None]
        everyone = tuple(range(len(self._offers)))
        for _, members in sorted(found)[:N_REFINED] or [(0.0, everyone)]:
            rough, exact = self._tried[members], self._choose(members, exact=True)
            if exact is not None and (rough is None or exact.token_s < rough.token_s):
                self._tried[members] = exact
        return min(
            (c for c in self._tried.values() if c is not None),
            key=lambda c: c.token_s,
            default=None,
        )

    def everyone(self) -> Chosen | None:
        """Return the fill of every agent that can hold at least one atom."""
        everyone = self._fill(tuple(range(len(self._offers))))
        members = tuple(j for j in range(len(self._offers)) if everyone.can_hold_one(j))
        if not members:
            return None
        self._fastest((self._by_speed[:k] for k in range(1, len(self._by_speed) + 1)), None)
        return self._choose(members, exact=True, spread=True)

    def considered(self, chosen: Chosen) -> tuple[Alternative, ...]:
        """Return the best alternative of each number of agents, by rising number."""
        best: dict[int, Alternative] = {}
        for members, found in self._tried.items():
            kept = found.members if found else members
            if kept == chosen.members:
                continue
            token_s = found.token_s if found else None
            names = tuple(self._offers[j].name for j in kept)
            other = best.get(len(kept))
            if other is None or (token_s or np.inf) < (other.token_s or np.inf):
                why = self._why_not(kept, token_s, chosen)
                best[len(kept)] = Alternative(len(kept), names, token_s, why)
        names = tuple(self._offers[j].name for j in chosen.members)
        best[len(names)] = Alternative(len(names), names, chosen.token_s, "")
        return tuple(best[k] for k in sorted(best))

    def shortage(self) -> str:
        """Return, for people, how many bytes are missing in all and what each agent offers."""
        fill = self._fill(tuple(range(len(self._offers))))
        packed = fill.packed()
        missing = fill.missing_bytes(packed)
        request, sizes, g = self._request, self._sizes, self._geometry
        n_groups = g.n_layers * g.n_kv_heads
        weights = n_groups * sizes.group + g.n_layers * g.n_column_atoms * sizes.column
        weights += g.n_vocab_atoms * sizes.vocab
        text = (
            f"the model does not fit: {_size(missing)} are missing ({missing} bytes); it needs "
            f"{_size(weights)} for weights and {_size(n_groups * sizes.group_pool)} for the "
            f"{request.kv} KV of {request.kv_tokens} tokens; add an agent, lower --ctx, or convert "
            f"with a smaller --dtype"
        )
        for j, offer in enumerate(self._offers):
            held = (
                f"{packed.groups[j]} head groups, {packed.columns[j]} column atoms, "
                f"{packed.vocab[j]} vocab atoms"
            )
            text += f"\n  {offer.name} offers {_size(offer.memory_bytes)}: room for {held}"
        return text

    def _fill(self, members: Sequence[int]) -> Fill:
        memory_bytes = [self._offers[j].memory_bytes for j in members]
        return Fill(self._geometry, self._sizes, self._rates[list(members)], memory_bytes)

    def _choose(
        self, members: tuple[int, ...], exact: bool = False, spread: bool = False
    ) -> Chosen | None:
        """Fill a subset; members that end up with nothing are left out."""
        fill = self._fill(members)
        shares = fill.best(
            lambda counts: self._time_s(members, counts), exact, None if exact else self._most_fills
        )
        if shares is None:
            return None
        if spread:
            fill.spread(shares)
        kept = [i for i in range(len(members)) if shares.n_atoms(i)]
        users = tuple(members[i] for i in kept)
        counts = fill.counts(shares).only(kept)
        return Chosen(users, counts, self._time_s(users, counts))

    def _time_s(self, members: tuple[int, ...], counts: Counts) -> float:
        speeds = self._rates[list(members)]
        link = slowest_link(self._link, (self._offers[j] for j in members))
        return token_time(counts, self._sizes, speeds, link, self._costs).total_s

    def _fastest(self, subsets: Iterable[tuple[int, ...]], best: Chosen | None) -> Chosen | None:
        """Return the fastest of the subsets and `best`; the first one at equal times."""
        for subset in subsets:
            members = tuple(sorted(subset))
            if members not in self._tried:
                self._tried[members] = self._choose(members)
            found = self._tried[members]
            if found is not None and (best is None or found.token_s < best.token_s):
                best = found
        return best

    def _neighbours(self, chosen: Chosen, most: int) -> Iterator[tuple[int, ...]]:
        """Yield the subsets that differ from the chosen one by a drop, a join or a swap."""
        inside = chosen.members
        outside = [j for j in self._by_speed if j not in inside][:most]
        slowest = [j for j in reversed(self._by_speed) if j in inside][:most]
        for out in slowest:
            rest = tuple(j for j in inside if j != out)
            if rest:
                yield rest
            yield from ((*rest, new) for new in outside)
        yield from ((*inside, new) for new in outside)

    def _why_not(self, members: tuple[int, ...], token_s: float | None, chosen: Chosen) -> str:
        if token_s is None:
            fill = self._fill(members)
            return f"does not fit: {_size(fill.missing_bytes(fill.packed()))} missing"
        percent = 100.0 * (token_s / chosen.token_s - 1.0)
        if percent < 0:
            return f"{-percent:.0f} % faster, but every agent was to be used"
        return f"{percent:.0f} % slower"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.2f} GiB"
