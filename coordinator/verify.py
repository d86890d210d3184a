"""The `verify` verb: placement must not change the words, shown on the user's own machine.

Two questions. Exact mode (f32 wire and KV): do greedy tokens agree under every agent count and
random placement? Default mode (f16): fed the exact text, how far are the logits, and does the
likeliest token differ only where two tokens were nearly tied? Exact mode finds faults of placement,
however small; default mode shows what rounding costs.
"""

import argparse
import random
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from agent.ids import ModelId
from coordinator.cluster import Cluster
from coordinator.local import MAX_LOCAL_AGENTS, local_names
from coordinator.plan import Plan
from coordinator.random_plan import random_plan
from kernels.errors import InputError, PromptError

__all__ = ["Comparison", "add_arguments", "compare_logits", "run", "verify"]

PROMPTS = ["", "Once upon a time", "The big dog said", "One day, a little girl"]
# f16 keeps 11 bits of every partial sum and of keys and values; the errors of all exchanges
# together stay below this share of the spread of a row's logits (measured, docs/decisions.md).
MAX_ERROR_SHARE = 0.01
# Weights of q8 and q4 meet activations rounded to 8 bits as well: up to 3.9 % on random tokens.
MAX_INT8_ERROR_SHARE = 0.06
# In exact mode only the order of additions differs: 8.5e-7 at most over all formats (measured).
MAX_EXACT_ERROR_SHARE = 2e-5
MAX_PLACEMENTS = 10_000


class Comparison(NamedTuple):
    """Default-mode logits of one text against exact ones."""

    max_error: float
    max_error_share: float
    n_rows: int
    n_other_argmax: int
    n_not_near_tie: int


def compare_logits(exact: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Comparison:
    """Compare logits row by row, (n_rows, V) each.

    A different argmax is a near-tie when the exact logits of the two tokens are closer than
    twice the largest error of that row: the error alone explains the change.
    """
    error = np.abs(exact.astype(np.float64) - other).max(axis=1)
    spread = np.ptp(exact, axis=1) + 1e-9
    rows = np.arange(len(exact))
    best, found = exact.argmax(axis=1), other.argmax(axis=1)
    gap = exact[rows, best] - exact[rows, found]
    return Comparison(
        float(error.max()),
        float((error / spread).max()),
        len(exact),
        int((best != found).sum()),
        int(((best != found) & (gap > 2 * error)).sum()),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `headwise verify`."""
    parser.add_argument("-m", "--model", help="model directory (default: the demo)")
    parser.add_argument("--agents", default="1,2,3,5", help="agent counts to try (1,2,3,5)")
    parser.add_argument("--placements", type=int, default=3, help="random placements a count (3)")
    parser.add_argument("-n", "--max-tokens", type=int, default=48, help="tokens a text (48)")
    parser.add_argument("-p", "--prompt", action="append", help="text to continue; repeatable")
    parser.add_argument("--seed", type=int, default=1, help="of the random placements")


def run(args: argparse.Namespace) -> int:
    """Verify, print what was found, and return 1 at the first difference."""
    counts = _counts(args.agents)
    if not 0 <= args.placements <= MAX_PLACEMENTS:
        raise InputError(f"--placements {args.placements}; 0 to {MAX_PLACEMENTS} are possible")
    with Cluster(args.model, local=max(counts), exact=True, verbose=args.verbose) as cluster:
        prompts = _prompts(cluster, args.prompt, args.seed)
        rng = random.Random(args.seed)
        return verify(cluster, prompts, counts, args.placements, args.max_tokens, rng)


def verify(
    cluster: Cluster,
    prompts: list[list[int]],
    counts: list[int],
    n_placements: int,
    max_tokens: int,
    rng: random.Random,
) -> int:
    """Check both modes on a cluster in exact mode; print findings; return 0 or 1."""
    texts: list[list[int]] = []
    logits: list[npt.NDArray[np.float32]] = []
    # What all placements are compared with: everything on one agent.
    counts = [1, *(count for count in counts if count != 1)]
    if len(counts) == 1:
        raise InputError("nothing to compare one agent with; add a larger count to --agents")
    for label, plan in _placements(cluster, counts, n_placements, rng):
        cluster.install(plan)
        for i, prompt in enumerate(prompts):
            ids = _greedy(cluster, prompt, max_tokens)
            if i == len(texts):
                texts.append(ids)
                logits.append(cluster.logits(prompt + ids))
            elif ids != texts[i]:
                _print_difference(label, prompt, texts[i], ids)
                return 1
        # Equal words may hide a small fault that unequal logits show.
        found = _compare_texts(cluster, prompts, texts, logits)
        if found.max_error_share > MAX_EXACT_ERROR_SHARE:
            print(
                f"exact    {label}: DIFFERS in logits by {100 * found.max_error_share:.4f} % of "
                f"their spread, bound {100 * MAX_EXACT_ERROR_SHARE:.4f} %\nverify failed"
            )
            return 1
        print(
            f"exact    {label}: {len(prompts)} texts equal, largest logit difference "
            f"{found.max_error:.1e}",
            flush=True,
        )
    worst = 0
    has_int8 = cluster.directory.manifest.dtype in ("q8", "q4")
    bound = MAX_INT8_ERROR_SHARE if has_int8 else MAX_ERROR_SHARE
    for label, plan in _placements(cluster, counts, n_placements, rng):
        cluster.install(msgspec.structs.replace(plan, wire="f16", kv="f16"))
        found = _compare_texts(cluster, prompts, texts, logits)
        bad = found.max_error_share > bound or found.n_not_near_tie > 0
        worst |= bad
        print(
            f"default  {label}: largest logit error {found.max_error:.4f} "
            f"({100 * found.max_error_share:.2f} % of the spread, bound "
            f"{100 * bound:.0f} %), other argmax in {found.n_other_argmax} of "
            f"{found.n_rows} rows, {found.n_not_near_tie} of them no near-tie"
            f"{'  FAILED' if bad else ''}",
            flush=True,
        )
    print("verify failed" if worst else "verify passed: placement does not change the words")
    return int(worst)


def _compare_texts(
    cluster: Cluster,
    prompts: list[list[int]],
    texts: list[list[int]],
    logits: list[npt.NDArray[np.float32]],
) -> Comparison:
    """Compare the logits of all texts, teacher-forced, one text at a time."""
    parts = [
        compare_logits(exact, cluster.logits(prompt + text))
        for prompt, text, exact in zip(prompts, texts, logits, strict=True)
    ]
    return Comparison(
        max(p.max_error for p in parts),
        max(p.max_error_share for p in parts),
        sum(p.n_rows for p in parts),
        sum(p.n_other_argmax for p in parts),
        sum(p.n_not_near_tie for p in parts),
    )


def _placements(
    cluster: Cluster, counts: list[int], n_random: int, rng: random.Random
) -> Iterator[tuple[str, Plan]]:
    """Yield a label and a plan for each count: the planner's, then random ones."""
    geometry = cluster.directory.geometry
    for count in counts:
        names = local_names(count)
        label = f"{count} agent{'s' * (count > 1)}"
        yield f"{label}, planned  ", cluster.make_plan(names)
        for i in range(n_random if count > 1 else 0):
            plan = random_plan(rng, ModelId(cluster.directory.model_id), geometry, names)
            yield (
                f"{label}, random {i + 1}",
                msgspec.structs.replace(plan, wire="f32", kv="f32"),
            )


def _greedy(cluster: Cluster, prompt: list[int], max_tokens: int) -> list[int]:
    generation = cluster.generate(prompt_ids=prompt, max_tokens=max_tokens)
    return [token.id for token in generation if token.id is not None]


def _print_difference(label: str, prompt: list[int], wanted: list[int], found: list[int]) -> None:
    at = next(
        (i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b),
        min(len(wanted), len(found)),
    )
    print(
        f"exact    {label}: DIFFERS at token {at} after prompt {prompt}: "
        f"{wanted[at : at + 1]} with one agent, {found[at : at + 1]} here\nverify failed",
        flush=True,
    )


def _prompts(cluster: Cluster, texts: list[str] | None, seed: int) -> list[list[int]]:
    """Return the prompts as token ids; random ones for a model without a tokenizer."""
    if cluster.tokenizer is not None:
        return [cluster.tokenizer.encode(text) for text in texts or PROMPTS]
    if texts:
        raise PromptError("this model has no tokenizer; leave out --prompt")
    rng = random.Random(seed)
    vocab_size = cluster.directory.config.vocab_size
    return [[rng.randrange(vocab_size) for _ in range(n)] for n in (1, 5, 12)]


def _counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError as e:
        raise InputError(f"--agents {text!r} is no list of counts; write it like 1,2,3,5") from e
    if not all(1 <= c <= MAX_LOCAL_AGENTS for c in counts):
        raise InputError(f"--agents {text!r}; each count is 1 to {MAX_LOCAL_AGENTS}")
    return counts
