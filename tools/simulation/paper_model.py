"""The setting of Kafetzis et al. (arXiv 2505.02533): one layer, its blocks, its distributions.

Numbers in brackets are sections of reference/papers.md, which says what is known of the paper and
what of its first author's simulator ("the code"). Where both leave a choice:

- compute of a block is the paper's: the whole sequence again for each token [1.2];
- ffn takes 8 L D^2 (the code's 0.8 L D^2 makes it ten times too cheap) [1.2];
- proj (D^2) and ffn (8 D^2) have weights like the heads (the code counts none) [1.2];
- the KV cache of a head is 2 L dh values, prompt included (the code's tau D is h/2 times that);
- rates of links are bits, blocks are bytes: 8 bits a byte (the code forgets it) [1.9];
- a device starts to send when it has computed: its heads' compute and transfer add up, the
  slowest device counts, then proj, then ffn [1.3, the form of the paper];
- only compute has a background load, drawn anew for each device and interval, uniform in 0 to
  30 % [1.7]; links and memory stay as they were drawn;
- sum b_i <= C_j is left out: it compares FLOP with FLOP/s, and an interval lasts as long as its
  token [1.2];
- the first placement is free: weights have to be loaded anyhow.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from coordinator.planner.blocks import BlockCosts

__all__ = ["Layer", "Observation", "World", "draw_world"]

Floats = npt.NDArray[np.float64]

BITS = 8


class Layer(NamedTuple):
    """One decoder layer [1.2]: FLOP and bytes of its blocks by the length of the sequence."""

    n_heads: int = 32
    width: int = 2048
    value_bytes: int = 4
    prompt_tokens: int = 64

    @property
    def head_width(self) -> int:
        """Values of a head: D / h."""
        return self.width // self.n_heads

    def head_flop(self, tokens: int) -> float:
        """Return b_i of a head: 3 L D dh + L^2 dh."""
        return float(tokens * self.head_width * (3 * self.width + tokens))

    def proj_flop(self, tokens: int) -> float:
        """Return b_i of proj: L D^2."""
        return float(tokens * self.width**2)

    def ffn_flop(self, tokens: int) -> float:
        """Return b_i of ffn: 8 L D^2."""
        return 8.0 * tokens * self.width**2

    def head_bytes(self, tokens: int) -> float:
        """Return m_i of a head: Q, K, V of the interval, weights, KV cache."""
        values = (3 + 2) * tokens * self.head_width + 3 * self.width * self.head_width
        return float(values * self.value_bytes)

    def proj_bytes(self, tokens: int) -> float:
        """Return m_i of proj: its output and weights."""
        return float((tokens * self.width + self.width**2) * self.value_bytes)

    def ffn_bytes(self, tokens: int) -> float:
        """Return m_i of ffn: its inner activations and weights."""
        return float((4 * tokens * self.width + 8 * self.width**2) * self.value_bytes)

    def head_output_bytes(self, tokens: int) -> float:
        """Return w_i of a head: L dh values."""
        return float(tokens * self.head_width * self.value_bytes)

    def proj_output_bytes(self, tokens: int) -> float:
        """Return w_i of proj: L D values."""
        return float(tokens * self.width * self.value_bytes)


class Observation(NamedTuple):
    """What a controller knows at the start of an interval: nothing of later ones.

    Attributes:
        costs: seconds and bytes of this interval.
        flop_per_s: [n] C_j(tau), background load taken off.
        head_flop, proj_flop, ffn_flop: b_i of this interval.
        intervals_left: what the request may still take, this interval included; it is known in
            practice as the most tokens that were asked for.
    """

    costs: BlockCosts
    flop_per_s: Floats
    head_flop: float
    proj_flop: float
    ffn_flop: float
    intervals_left: int


@dataclass(frozen=True, eq=False)
class World:
    """One random instance: devices, links, and the load of each interval.

    Attributes:
        layer: what is placed.
        flop_per_s: [n] compute without load.
        memory_bytes: [n].
        bits_per_s: [n, n] symmetric; the diagonal is infinite.
        load: [intervals, n] share of compute that others take.
        first_interval: tokens already written before interval 0.
    """

    layer: Layer
    flop_per_s: Floats
    memory_bytes: Floats
    bits_per_s: Floats
    load: Floats
    first_interval: int = 0

    @property
    def n_intervals(self) -> int:
        """Number of intervals; each writes one token (lambda = 1)."""
        return len(self.load)

    def tokens(self, interval: int) -> int:
        """Return L(tau) = L0 + lambda tau, with lambda = 1."""
        return self.layer.prompt_tokens + self.first_interval + interval

    def observe(self, interval: int) -> Observation:
        """Return what is known at the start of an interval."""
        layer, tokens = self.layer, self.tokens(interval)
        rate = self.flop_per_s * (1 - self.load[interval])
        byte_s = BITS / self.bits_per_s
        head, proj, ffn = layer.head_flop(tokens), layer.proj_flop(tokens), layer.ffn_flop(tokens)
        costs = BlockCosts(
            layer.n_heads,
            head / rate,
            proj / rate,
            ffn / rate,
            layer.head_output_bytes(tokens) * byte_s,
            layer.proj_output_bytes(tokens) * byte_s,
            layer.head_bytes(tokens),
            layer.proj_bytes(tokens),
            layer.ffn_bytes(tokens),
            self.memory_bytes,
            byte_s,
        )
        return Observation(costs, rate, head, proj, ffn, self.n_intervals - interval)


def draw_world(
    n_devices: int,
    seed: int,
    n_intervals: int = 1,
    layer: Layer | None = None,
    first_interval: int = 0,
    memory_scale: float = 1.0,
) -> World:
    """Draw an instance of the paper's distributions [1.7].

    Compute is log-normal, clipped to 5-50 GFLOPS, memory log-normal, clipped to 2-8 GB: medians
    are the geometric means of the limits, and the limits are two standard deviations away
    (neither is known of the paper). Links are uniform in 1-10 Gbps, the same in both directions.

    Args:
        n_devices: devices, all of them able to hold blocks.
        seed: with n_devices it determines everything.
        n_intervals: tokens to write.
        layer: what is placed; None = 32 heads, width 2048, fp32, 64 prompt tokens.
        first_interval: tokens already written.
        memory_scale: factor on memory, to make it tight: as drawn it never binds.
    """
    random = np.random.default_rng([seed, n_devices])
    flop_per_s = _clipped_log_normal(random, n_devices, 5e9, 50e9)
    memory_bytes = _clipped_log_normal(random, n_devices, 2e9, 8e9) * memory_scale
    upper = np.triu(random.uniform(1e9, 10e9, (n_devices, n_devices)), 1)
    bits_per_s = upper + upper.T
    np.fill_diagonal(bits_per_s, np.inf)
    load = random.uniform(0.0, 0.3, (n_intervals, n_devices))
    return World(layer or Layer(), flop_per_s, memory_bytes, bits_per_s, load, first_interval)


def _clipped_log_normal(random: np.random.Generator, n: int, low: float, high: float) -> Floats:
    middle, sigma = np.log(low * high) / 2, np.log(high / low) / 4
    drawn: Floats = np.clip(random.lognormal(middle, sigma, n), low, high)
    return drawn
