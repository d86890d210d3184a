"""What a placement costs: time per token and memory per member. Pure arithmetic.

Decode is bound by memory bandwidth: a phase takes as long as its slowest member reads its atoms,

    phase = max_j(call + bytes_j / rate_j) + factor (2 hop + (N + 1) S / R + N peer)

with N members taking part, S bytes of residual and R bytes per second on the link (star: one frame
out and one back for each), and the factor by which exchanges turned out to take longer. A stage of
one member runs all its layers in one call. The time of head groups includes reading the KV of
`typical_tokens`; their memory includes the pages
of all `kv_tokens` admitted. Works on counts of atoms, so the planner need not build plans.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.ids import AgentName
from agent.kv import KvShape
from agent.kv_rows import token_bytes
from agent.share import KvFormat, WireFormat, count_atoms
from coordinator.plan import Plan
from kernels.layout import Geometry
from kernels.paging import PAGE_DTYPES, PAGE_TOKENS

__all__ = [
    "DEFAULT_COSTS",
    "AtomSizes",
    "Costs",
    "Counts",
    "Link",
    "Offer",
    "Place",
    "PlanRequest",
    "TokenTime",
    "atom_sizes",
    "counts_of",
    "exchange_s",
    "kv_token_bytes",
    "rates",
    "slowest_link",
    "stages_of",
    "token_time",
]

Place = Literal["auto", "spread"]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# What a board reads at least, for agents that have not measured it.
UNMEASURED_BYTES_PER_S = 1e9


class Link(NamedTuple):
    """The way between coordinator and agents: one-way delay, and goodput."""

    hop_s: float
    bytes_per_s: float


class Offer(NamedTuple):
    """What one agent offers: memory left after its reserve, and how fast it reads weights.

    `bytes_per_s` 0 = not measured; `link`: its own way to the coordinator, None = like all others.
    """

    name: AgentName
    memory_bytes: int
    bytes_per_s: float
    n_threads: int = 1
    link: Link | None = None


class Costs(NamedTuple):
    """Fixed costs: of a kernel call, of one peer in an exchange, of the coordinator's own work.

    `sample_s` is once a token; `exchange_factor`: measured exchanges over what hop, link and peers
    say.
    """

    call_s: float = 20e-6
    peer_s: float = 40e-6
    sample_s: float = 150e-6
    exchange_factor: float = 1.0


DEFAULT_COSTS = Costs()


@dataclass(frozen=True)
class PlanRequest:
    """What a plan must serve.

    Attributes:
        context_tokens: longest context.
        kv_tokens: tokens of all open contexts together.
        wire: type of exchanged numbers.
        kv: type of cached keys and values.
        place: "auto" takes the fastest subset of agents, "spread" every agent that can hold
            at least one atom.
        n_contexts: most contexts open at once; each may leave one page partly empty.
        typical_tokens: context length at which time is predicted; 0 = half of context_tokens.
    """

    context_tokens: int
    kv_tokens: int
    wire: WireFormat = "f16"
    kv: KvFormat = "f16"
    place: Place = "auto"
    n_contexts: int = 4
    typical_tokens: int = 0


class AtomSizes(NamedTuple):
    """Bytes of one atom of each class, and what every member of a stage adds.

    `group` and `column` are of one layer; `group_pool` is a group's share of the KV pool,
    `group_read` what a step reads of its weights and KV; `payload` is one row on the wire.
    """

    group: int
    group_pool: int
    group_read: int
    column: int
    vocab: int
    layer_norms: int
    final_norm: int
    payload: int


class Counts(NamedTuple):
    """Atoms held, by layer and rank: groups (L, n), columns (L, n) and vocab (n,) int64.

    `stages` lists (first layer, layers, first rank, ranks) of each stage.
    """

    groups: Ints
    columns: Ints
    vocab: Ints
    stages: tuple[tuple[int, int, int, int], ...]

    def only(self, ranks: list[int]) -> "Counts":
        """Return the counts of some ranks of a single stage; the others must hold nothing."""
        ((first_layer, n_layers, _, _),) = self.stages
        stages = ((first_layer, n_layers, 0, len(ranks)),)
        return Counts(self.groups[:, ranks], self.columns[:, ranks], self.vocab[ranks], stages)

    def weights_bytes(self, sizes: AtomSizes) -> Ints:
        """Return the bytes of weights each member keeps resident, (n,)."""
        held: Ints = self.groups.sum(0) * sizes.group + self.columns.sum(0) * sizes.column
        held += self.vocab * sizes.vocab + (self.vocab > 0) * sizes.final_norm
        for _, n_layers, first_rank, n_ranks in self.stages:
            held[first_rank : first_rank + n_ranks] += n_layers * sizes.layer_norms
        return held

    def pool_bytes(self, sizes: AtomSizes) -> Ints:
        """Return the bytes of each member's KV pool, (n,)."""
        pool: Ints = self.groups.sum(0) * sizes.group_pool
        return pool


class TokenTime(NamedTuple):
    """Predicted time of one decoded token: in kernels of the slowest members, and around them."""

    kernels_s: float
    exchange_s: float

    @property
    def total_s(self) -> float:
        """The whole time of a token."""
        return self.kernels_s + self.exchange_s


def atom_sizes(geometry: Geometry, request: PlanRequest) -> AtomSizes:
    """Return the sizes of a model's atoms under a request."""
    shape = KvShape(
        n_groups=1,
        head_dim=geometry.head_dim,
        dtype=PAGE_DTYPES[request.kv],
        context_tokens=request.context_tokens,
        kv_tokens=request.kv_tokens,
        n_contexts=request.n_contexts,
    )
    typical_tokens = request.typical_tokens or request.context_tokens // 2
    return AtomSizes(
        group=geometry.head_group_bytes,
        group_pool=shape.pool_bytes,
        group_read=geometry.head_group_bytes + typical_tokens * shape.page_bytes // PAGE_TOKENS,
        column=geometry.column_bytes,
        vocab=geometry.vocab_bytes,
        layer_norms=geometry.layer_norms_bytes,
        final_norm=geometry.final_norm_bytes,
        payload=geometry.hidden_size * (2 if request.wire == "f16" else 4),
    )


def kv_token_bytes(geometry: Geometry, kv: KvFormat) -> int:
    """Return the bytes of keys and values of one token in one head group of one layer."""
    # Sizes of contexts are of no account to a page.
    return token_bytes(KvShape(1, geometry.head_dim, PAGE_DTYPES[kv], 1, 1, 1))


def rates(offers: Sequence[Offer]) -> Floats:
    """Return bytes per second of each offer; the slowest measured one's where not measured."""
    measured = [o.bytes_per_s for o in offers if o.bytes_per_s > 0]
    default = min(measured, default=UNMEASURED_BYTES_PER_S)
    return np.array([o.bytes_per_s if o.bytes_per_s > 0 else default for o in offers])


def counts_of(plan: Plan, geometry: Geometry) -> Counts:
    """Return how many atoms each member of a checked plan holds."""
    n = len(plan.members)
    groups = np.zeros((geometry.n_layers, n), np.int64)
    columns = np.zeros_like(groups)
    for rank, member in enumerate(plan.members):
        for share in member.layers:
            groups[share.layer, rank] = count_atoms(share.head_groups)
            columns[share.layer, rank] = count_atoms(share.columns)
    vocab = np.array([count_atoms(m.vocab) for m in plan.members], np.int64)
    return Counts(groups, columns, vocab, stages_of(plan))


def stages_of(plan: Plan) -> tuple[tuple[int, int, int, int], ...]:
    """Return (first layer, layers, first rank, ranks) of each stage."""
    stages, first_rank = [], 0
    for stage in plan.stages:
        stages.append((stage.first_layer, stage.n_layers, first_rank, len(stage.members)))
        first_rank += len(stage.members)
    return tuple(stages)


def token_time(
    counts: Counts,
    sizes: AtomSizes,
    bytes_per_s: Floats,
    link: Link,
    costs: Costs = DEFAULT_COSTS,
) -> TokenTime:
    """Predict the time of one decoded token; bytes_per_s is (n,), in rank order."""
    attention_s = counts.groups * (sizes.group_read / bytes_per_s)
    mlp_s = counts.columns * (sizes.column / bytes_per_s)
    vocab_s = counts.vocab * (sizes.vocab / bytes_per_s)
    kernels_s, around_s = 0.0, costs.sample_s
    vocab_after = False
    for first_layer, n_layers, first_rank, n_ranks in counts.stages:
        layers = slice(first_layer, first_layer + n_layers)
        ranks = slice(first_rank, first_rank + n_ranks)
        if n_ranks == 1:
            kernels_s += costs.call_s + float((attention_s + mlp_s)[layers, ranks].sum())
            around_s += float(exchange_s(np.array(1), sizes.payload, link, costs))
            vocab_after = bool(counts.vocab[first_rank] == counts.vocab.sum())
            continue
        vocab_after = False
        for phase_s in attention_s[layers, ranks], mlp_s[layers, ranks]:
            kernels_s += n_layers * costs.call_s + float(phase_s.max(1).sum())
            n_members = (phase_s > 0).sum(1)
            around_s += float(exchange_s(n_members, sizes.payload, link, costs).sum())
    kernels_s += float(vocab_s.max())
    if not vocab_after:
        kernels_s += costs.call_s
        n_members = (counts.vocab > 0).sum()
        around_s += float(exchange_s(n_members, sizes.payload, link, costs))
    return TokenTime(kernels_s, around_s)


def slowest_link(link: Link, offers: Iterable[Offer]) -> Link:
    """Return what exchanges with these agents wait for: the slowest of their links and `link`."""
    own = [o.link for o in offers if o.link is not None]
    if not own:
        return link
    return Link(
        max(link.hop_s, *(x.hop_s for x in own)),
        min(link.bytes_per_s, *(x.bytes_per_s for x in own)),
    )


def exchange_s(n_members: Ints, payload_bytes: int, link: Link, costs: Costs) -> Floats:
    """Return the time of exchanges in a star with so many members each, rows of that size."""
    wire_s = (n_members + 1) * (payload_bytes / link.bytes_per_s)
    result: Floats = 2 * link.hop_s + wire_s + n_members * costs.peer_s
    return costs.exchange_factor * result
