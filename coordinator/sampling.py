"""From logits to the next token: options, the draw, and when the best candidates suffice.

Order: repeat penalty (already applied by the vocab holders), temperature, top-k, top-p, min-p,
then one draw by inverse CDF. Candidates stand by falling logit, then rising id, so every filter
keeps the first so many of them, and a token depends on nothing but the logits, the options and
u. The same token comes from the holders' best candidates as from all logits, or none at all
(NEED_FULL_LOGITS). Pure: no clock, no random state; u is a function of (seed, token index).
"""

import itertools
import math
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from agent.vocab_payload import MAX_PENALISED, TOP_CANDIDATES, TopRow
from kernels.errors import PromptError, RemoteError

__all__ = [
    "NEED_FULL_LOGITS",
    "Merged",
    "SamplingOptions",
    "best_of",
    "choose",
    "choose_from_logits",
    "merge",
    "probabilities",
    "uniform",
]

NEED_FULL_LOGITS = -1

# Holders sum their exponentials in another order than this file does, and in float32, which is off
# by less than half of this. A draw that lands so near a border that rounding could decide it is
# settled with all logits, in one fixed order.
MASS_TOLERANCE = 5e-6

_31, _SIGN = np.int32(31), np.int32(-(2**31))

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U32 = npt.NDArray[np.uint32]


class SamplingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the next token is drawn.

    Attributes:
        temperature: 0 = greedy (lowest id at ties), else 0.001 to 1000.
        top_k: keep the k likeliest tokens; 0 = all.
        top_p: keep the likeliest tokens up to this share of the mass; 1 = all.
        min_p: drop tokens below this share of the likeliest one's probability; 0 = none.
        repeat_penalty: divides positive and multiplies negative logits of recent tokens; 1 = off.
        repeat_last_n: how many tokens back are recent, prompt included; 0 = none.
        seed: with the token's index, the only source of chance.

    Raises:
        PromptError: an option out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        # Comparisons are written so that NaN fails them.
        _require(
            self.temperature == 0.0 or 0.001 <= self.temperature <= 1000.0,
            "temperature", self.temperature, "0 (greedy) or 0.001 to 1000",
        )  # fmt: skip
        _require(self.top_k >= 0, "top-k", self.top_k, "0 (all tokens) or more")
        _require(0.0 < self.top_p <= 1.0, "top-p", self.top_p, "above 0 and at most 1 (all tokens)")
        _require(0.0 <= self.min_p <= 1.0, "min-p", self.min_p, "0 (all tokens) to 1")
        _require(
            0.01 <= self.repeat_penalty <= 100.0,
            "repeat penalty", self.repeat_penalty, "0.01 to 100; 1 means none",
        )  # fmt: skip
        _require(
            0 <= self.repeat_last_n <= MAX_PENALISED,
            "repeat-last-n", self.repeat_last_n, f"0 to {MAX_PENALISED} tokens",
        )  # fmt: skip
        _require(0 <= self.seed < 1 << 64, "seed", self.seed, "0 to 2^64 - 1")


def _require(ok: bool, name: str, value: float, allowed: str) -> None:
    if not ok:
        raise PromptError(f"{name} is {value}; it must be {allowed}")


class Merged(NamedTuple):
    """The holders' candidates of one row together, sorted by falling logit, then rising id.

    Attributes:
        ids: token ids, (n,) uint32.
        logits: penalised logits, (n,) float32.
        n_certain: the first n_certain candidates are the best of the whole vocabulary.
        complete: the candidates are the whole vocabulary.
        log_sum_exp: of the whole vocabulary, at the temperature of the step.
    """

    ids: U32
    logits: F32
    n_certain: int
    complete: bool
    log_sum_exp: float


def merge(rows: list[TopRow]) -> Merged:
    """Merge one vocab row's answers from all its holders, in any order.

    Of a row that is drawn: a greedy row's answers are cut to the best one, see `best_of`.

    Raises:
        RemoteError: no candidates, or logits with inf or NaN.
    """
    sizes = [len(row.ids) for row in rows]
    total = _log_sum_exp([row.log_sum_exp for row in rows])
    if not math.isfinite(total) or 0 in sizes:
        raise RemoteError(
            f"vocab holders answered with {sizes} candidates and log-sum-exp {total}; run "
            f"`headwise verify` to find damaged weights"
        )
    ids = np.concatenate([row.ids for row in rows])
    keys = _sort_keys(np.concatenate([row.logits for row in rows]), ids)
    # A full list may have been cut: what its holder kept back ranks after its last entry.
    ends = itertools.accumulate(sizes)
    cut = [keys[end - 1] for n, end in zip(sizes, ends, strict=True) if n >= TOP_CANDIDATES]
    keys.sort()
    n_certain = int(keys.searchsorted(min(cut))) + 1 if cut else len(keys)
    return Merged(*_unpack_keys(keys), n_certain, not cut, total)


def best_of(rows: list[TopRow]) -> int:
    """Return the likeliest token of all holders' candidates, the lowest id at ties.

    What `choose` does after `merge` when greedy, without sorting what nobody reads.

    Raises:
        RemoteError: no candidates.
    """
    best = [(-float(row.logits[0]), int(row.ids[0])) for row in rows if len(row.ids)]
    if not best:
        raise RemoteError("vocab holders answered without candidates; run `verify`")
    return min(best)[1]


def choose(merged: Merged, options: SamplingOptions, u: float) -> int:
    """Return the next token's id, or NEED_FULL_LOGITS where the candidates cannot decide.

    Args:
        merged: the candidates, made with the options' temperature and penalty.
        options: how to draw.
        u: in [0, 1), from `uniform`.
    """
    if options.temperature == 0.0:
        return int(merged.ids[0])
    ratios = _ratios(merged.logits[: merged.n_certain], options)
    sums = np.cumsum(ratios)
    known = float(sums[-1])
    if merged.complete or 0 < options.top_k <= merged.n_certain:
        mass = (known, known)
    else:
        best = float(merged.logits[0]) / _temperature(options)
        total = max(float(np.exp(merged.log_sum_exp - best)), known)
        low = known if options.top_k else max(known, total * (1.0 - MASS_TOLERANCE))
        mass = (low, total * (1.0 + MASS_TOLERANCE))
    index = _draw(ratios, sums, mass, options, u)
    return NEED_FULL_LOGITS if index < 0 else int(merged.ids[index])


def choose_from_logits(logits: F32, options: SamplingOptions, u: float) -> int:
    """Return the next token's id from the penalised logits of the whole vocabulary, (V,) f32."""
    if options.temperature == 0.0:
        return int(np.argmax(logits))
    ids, best = _sorted(logits, options.top_k)
    ratios = _ratios(best, options)
    sums = np.cumsum(ratios)
    mass = (float(sums[-1]), float(sums[-1]))
    return int(ids[_draw(ratios, sums, mass, options, u)])


def probabilities(logits: F32, options: SamplingOptions) -> F64:
    """Return the probability of each token, (V,) f64, from penalised logits, (V,) f32."""
    result = np.zeros(len(logits), np.float64)
    if options.temperature == 0.0:
        result[np.argmax(logits)] = 1.0
        return result
    ids, best = _sorted(logits, options.top_k)
    ratios = _ratios(best, options)
    n_kept = _n_kept(ratios, np.cumsum(ratios), float(np.cumsum(ratios)[-1]), options)
    result[ids[:n_kept]] = ratios[:n_kept] / ratios[:n_kept].sum()
    return result


def uniform(seed: int, token_index: int) -> float:
    """Return a number in [0, 1) that depends on (seed, token_index) alone.

    Philox is counter-based: no state to carry, so a step that runs again draws the same number.
    """
    bits = np.random.Philox(key=seed, counter=token_index).random_raw()
    return float(bits >> 11) * 2.0**-53


def _log_sum_exp(parts: list[float]) -> float:
    """Return log(sum(exp(parts))); NaN where there is nothing finite to sum."""
    best = max(parts, default=math.nan)
    if not math.isfinite(best):
        return math.nan
    return best + math.log(math.fsum(math.exp(part - best) for part in parts))


def _temperature(options: SamplingOptions) -> float:
    """Return the temperature as the holders see it: the wire carries it as float32."""
    return float(np.float32(options.temperature))


def _ratios(logits: F32, options: SamplingOptions) -> F64:
    """Return each probability over the best one's, (n,) f64, after temperature and top-k."""
    kept = logits[: options.top_k] if options.top_k else logits
    ratios: F64 = np.exp((kept.astype(np.float64) - float(kept[0])) / _temperature(options))
    return ratios


def _draw(
    ratios: F64, sums: F64, mass: tuple[float, float], options: SamplingOptions, u: float
) -> int:
    """Return the index of the drawn candidate, or -1 where bounds on the mass leave it open.

    `mass` bounds the sum of the ratios of all tokens that top-k keeps, those unknown included.
    """
    # Where the filters cut beyond the known candidates, this much they keep at least.
    least = float(sums[-1]) if options.min_p else max(float(sums[-1]), options.top_p * mass[0])
    drawn = set()
    for bound, beyond in (mass[0], least), (mass[1], mass[1]):
        n_kept = _n_kept(ratios, sums, bound, options)
        # A cut inside the known candidates makes the kept mass exact.
        kept_mass = float(sums[n_kept - 1]) if n_kept <= len(sums) else beyond
        drawn.add(int(np.searchsorted(sums, u * kept_mass, side="right")))
    index = drawn.pop()
    # Everything rises with the mass: what holds at both bounds holds between them.
    if drawn or (index >= len(sums) and mass[0] != mass[1]):
        return -1
    # With u next to 1, rounding may point one past the end.
    return min(index, len(sums) - 1)


def _n_kept(ratios: F64, sums: F64, mass: float, options: SamplingOptions) -> int:
    """Return how many candidates top-p and min-p keep; len + 1 where more than those known."""
    n_all = len(ratios) if mass == sums[-1] else len(ratios) + 1
    n_kept = n_all
    if options.top_p < 1.0:
        n_kept = min(n_kept, int(np.searchsorted(sums, options.top_p * mass)) + 1)
    if options.min_p > 0.0:
        n_min = len(ratios) - int(np.searchsorted(ratios[::-1], options.min_p))
        # Falling ratios: a cut inside the known ones is certain, none at all is not.
        n_kept = min(n_kept, n_min if n_min < len(ratios) else n_all)
    return max(1, n_kept)


def _sorted(logits: F32, top_k: int) -> tuple[U32, F32]:
    """Return ids and logits by falling logit, then rising id; at least the best top_k."""
    ids = np.arange(len(logits), dtype=np.uint32)
    if 0 < top_k < len(logits):
        smallest = -np.partition(-logits, top_k - 1)[top_k - 1]
        ids = np.flatnonzero(logits >= smallest).astype(np.uint32)
    return _unpack_keys(np.sort(_sort_keys(logits[ids], ids)))


def _sort_keys(logits: F32, ids: U32) -> npt.NDArray[np.uint64]:
    """Return one number a candidate that rises as its rank does: faster than np.lexsort.

    A float32's bits, with the sign bit flipped (all bits, if negative), rise with its value.
    """
    # Adding 0 turns -0.0 into 0.0: they are equal, so the id must decide.
    bits = (logits + np.float32(0.0)).view(np.int32)
    keys = np.empty(len(bits), np.uint64)  # little endian, as all our boards are
    halves = keys.view(np.uint32).reshape(-1, 2)
    halves[:, 0] = ids
    halves[:, 1] = (~(bits ^ ((bits >> _31) | _SIGN))).view(np.uint32)
    return keys


def _unpack_keys(keys: npt.NDArray[np.uint64]) -> tuple[U32, F32]:
    """Return ids and logits of sort keys."""
    halves = keys.view(np.uint32).reshape(-1, 2)
    rising = ~halves[:, 1].view(np.int32)
    # The sign bit is set where it was flipped, that is for what was not negative.
    return halves[:, 0].copy(), (rising ^ (~(rising >> _31) | _SIGN)).view(np.float32)
