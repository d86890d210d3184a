"""An independent sampler in plain NumPy, and texts checked against it token by token."""

import numpy as np
import numpy.typing as npt

from coordinator.cluster import Cluster
from coordinator.results import Result
from coordinator.sampling import SamplingOptions, uniform

__all__ = ["check_against_oracle", "draw", "penalised", "use", "write"]

F32 = npt.NDArray[np.float32]


def use(cluster: Cluster, n_agents: int) -> None:
    cluster.install(cluster.make_plan(cluster.agent_names()[:n_agents]))


def write(cluster: Cluster, prompt: list[int], options: SamplingOptions, n: int = 24) -> Result:
    generation = cluster.generate(prompt_ids=prompt, max_tokens=n, options=options)
    list(generation)
    return generation.result()


def penalised(logits: F32, text: list[int], options: SamplingOptions) -> F32:
    """Divide positive and multiply negative logits of recent tokens by the penalty."""
    found = logits.copy()
    recent = sorted(set(text[max(0, len(text) - options.repeat_last_n) :]))
    lowered = found[recent]
    penalty = np.float32(options.repeat_penalty)
    found[recent] = np.where(lowered > 0, lowered / penalty, lowered * penalty)
    return found


def draw(logits: F32, options: SamplingOptions, u: float) -> set[int]:
    """Return the token at u of the cumulated probabilities; two where u lies on a border."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    if options.temperature == 0:
        return {int(order[0])}
    best = logits[order].astype(np.float64) / np.float32(options.temperature)
    if options.top_k:
        best = best[: options.top_k]
    p = np.exp(best - best[0])
    p /= p.sum()
    kept = np.ones(len(p), bool)
    if options.top_p < 1:
        kept &= np.cumsum(p) - p < options.top_p
    kept &= p >= options.min_p * p[0]
    cumulated = np.cumsum(np.where(kept, p, 0))
    cumulated /= cumulated[-1]
    near = [np.searchsorted(cumulated, u + shift, side="right") for shift in (-1e-9, 1e-9)]
    return {int(order[min(int(i), kept.sum() - 1)]) for i in near}


def check_against_oracle(cluster: Cluster, result: Result, options: SamplingOptions) -> None:
    text = result.prompt_token_ids + result.token_ids
    logits = cluster.logits(text)
    n_prompt = len(result.prompt_token_ids)
    for at in range(n_prompt, len(text)):
        row = penalised(logits[at - 1], text[:at], options)
        assert text[at] in draw(row, options, uniform(options.seed, at))
