"""What the holders of vocabulary rows do with logits: penalties, log-sum-exp, top candidates.

penalty     l = l / penalty if l > 0 else l * penalty        for each listed token id
log_sum_exp log(sum over i of exp(l[i] / temperature))
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.elementary import exp_f32
from kernels.jit import inner, kernel
from kernels.simd import add, largest, less, load, max8, quotient, same, sum8
from kernels.simd_exp import exp8

__all__ = ["log_sum_exp", "penalise", "top_candidates", "top_of_row"]

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]
U32Array = npt.NDArray[np.uint32]
I64Array = npt.NDArray[np.int64]

# Exponentials of one float32 sum.
_CHUNK = 256


@kernel
def penalise(
    logits: F32Array, first_ids: I64Array, n_rows: I64Array, ids: U32Array, penalty: float
) -> None:
    """Apply the repeat penalty in place to those listed ids that are held here.

    Args:
        logits: (n_local,) float32: the rows of every held atom, one atom after the other.
        first_ids: (n_atoms,) token id of each atom's first row.
        n_rows: (n_atoms,) real rows of each atom.
        ids: (m,) distinct token ids.
        penalty: above 0; 1 changes nothing.
    """
    factor = np.float32(penalty)
    for token in ids:
        start = np.int64(0)
        for atom in range(first_ids.size):
            row = np.int64(token) - first_ids[atom]
            if 0 <= row < n_rows[atom]:
                x = logits[start + row]
                logits[start + row] = np.float32(x / factor) if x > 0 else np.float32(x * factor)
            start += n_rows[atom]


@kernel
def log_sum_exp(logits: F32Array, temperature: float) -> float:
    """Return log(sum(exp(logits / temperature))); minus infinity without numbers.

    Exponentials are float32, and so are sums of _CHUNK of them. The error is below 2.5e-6
    for 150,000 logits, most where they share the mass that one lacks; the sampler reckons with it.

    Args:
        logits: (n,) float32; NaN among numbers, or plus infinity, gives NaN.
        temperature: above 0 as a float32.
    """
    highest = _highest(logits)
    if math.isinf(highest):
        return -math.inf if highest < 0 else math.nan
    top, divisor = same(highest), same(np.float32(temperature))
    n_whole = logits.size - logits.size % 8
    total = 0.0
    for start in range(0, n_whole, _CHUNK):
        lanes = same(np.float32(0.0))
        for i in range(start, min(start + _CHUNK, n_whole), 8):
            lanes = add(lanes, exp8(quotient(less(load(logits, i), top), divisor)))
        total += np.float64(sum8(lanes))
    for i in range(n_whole, logits.size):
        total += np.float64(exp_f32(np.float32((logits[i] - highest) / np.float32(temperature))))
    return np.float64(highest) / temperature + math.log(total)


@inner
def _highest(logits: F32Array) -> np.float32:
    """Return the highest logit, passing over NaN; minus infinity if there is none."""
    n_whole = logits.size - logits.size % 8
    lanes = same(np.float32(-math.inf))
    for i in range(0, n_whole, 8):
        lanes = largest(load(logits, i), lanes)
    highest = max8(lanes)
    for i in range(n_whole, logits.size):
        highest = logits[i] if logits[i] > highest else highest
    return highest


@inner
def _comes_after(logit_a: Any, id_a: Any, logit_b: Any, id_b: Any) -> bool:
    """Tell whether a ranks below b: a smaller logit, or the same and a larger id."""
    return bool(logit_a < logit_b or (logit_a == logit_b and id_a > id_b))


@inner
def _sift_down(logits: F32Array, ids: U32Array, n: int) -> None:
    """Restore the heap (lowest rank first) of n entries after entry 0 changed."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= n:
            return
        if child + 1 < n and _comes_after(
            logits[child + 1], ids[child + 1], logits[child], ids[child]
        ):
            child += 1
        if not _comes_after(logits[child], ids[child], logits[at], ids[at]):
            return
        logits[at], logits[child] = logits[child], logits[at]
        ids[at], ids[child] = ids[child], ids[at]
        at = child


@inner
def _all_below(logits: F32Array, i: int, bound: np.float32) -> bool:
    """Tell whether there are 8 logits from i on and all are below a bound, or NaN."""
    if i + 8 > logits.size:
        return False
    return bool(max8(largest(load(logits, i), same(np.float32(-math.inf)))) < bound)


@kernel
def top_candidates(
    logits: F32Array, ids: U32Array, k: int, out_ids: U32Array, out_logits: F32Array
) -> int:
    """Write the k best candidates, best first by (-logit, id), and return how many there are.

    Args:
        logits: (n_local,) float32; NaN is never a candidate.
        ids: (n_local,) uint32 token ids of the logits.
        k: most candidates wanted, at most the size of the outputs.
        out_ids: (>= k,) uint32, written.
        out_logits: (>= k,) float32, written.
    """
    n = i = 0
    while i < logits.size:
        if n == k and n > 0 and _all_below(logits, i, out_logits[0]):
            i += 8
            continue
        x = logits[i]
        token, i = ids[i], i + 1
        if x != x:
            continue
        if n < k:
            at = n  # sift up
            n += 1
            while at > 0 and _comes_after(
                x, token, out_logits[(at - 1) // 2], out_ids[(at - 1) // 2]
            ):
                out_logits[at], out_ids[at] = out_logits[(at - 1) // 2], out_ids[(at - 1) // 2]
                at = (at - 1) // 2
            out_logits[at], out_ids[at] = x, token
        elif n > 0 and _comes_after(out_logits[0], out_ids[0], x, token):
            out_logits[0], out_ids[0] = x, token
            _sift_down(out_logits, out_ids, n)
    for last in range(n - 1, 0, -1):
        out_logits[0], out_logits[last] = out_logits[last], out_logits[0]
        out_ids[0], out_ids[last] = out_ids[last], out_ids[0]
        _sift_down(out_logits, out_ids, last)
    return n


@kernel
def top_of_row(
    logits: F32Array,
    ids: U32Array,
    k: int,
    temperature: float,
    total: F64Array,
    out_ids: U32Array,
    out_logits: F32Array,
) -> int:
    """Write what a holder of vocabulary says of one row; return how many candidates there are.

    Args:
        logits: (n_local,) float32, penalised.
        ids: as for `top_candidates`, like k, out_ids and out_logits.
        k: most candidates.
        temperature: of the sum, above 0.
        total: (1,) float64, written: `log_sum_exp`.
        out_ids: written.
        out_logits: written.
    """
    total[0] = log_sum_exp(logits, temperature)
    return top_candidates(logits, ids, k, out_ids, out_logits)
