"""The shape and maths of one model, independent of the family it came from.

Does not read files: `weights.families` turns a config.json into a `ModelConfig`.
"""

import math
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from kernels.errors import ModelError
from kernels.layout import Geometry, WeightFormat

__all__ = ["ModelConfig", "RopeConfig"]

RopeKind = Literal["default", "linear", "llama3"]

# Far above any published model; they keep absurd files from reserving absurd memory.
_MAX_SIZES = {
    "hidden_size": 1 << 17,
    "n_layers": 1 << 10,
    "n_heads": 1 << 12,
    "n_kv_heads": 1 << 12,
    "head_dim": 1 << 12,
    "n_columns": 1 << 20,
    "vocab_size": 1 << 22,
    "context_tokens": 1 << 26,
}


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ModelError(f"impossible model config: {what}; check config.json or the manifest")


class RopeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rotary position embedding: base `theta` and how frequencies are stretched.

    `factor` belongs to linear and llama3, the last three fields to llama3 alone.
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_tokens: int = 8192

    def validate(self) -> None:
        """Raise ModelError unless every number is usable."""
        _require(math.isfinite(self.theta) and self.theta >= 1.0, f"rope theta {self.theta}")
        _require(math.isfinite(self.factor) and self.factor > 0.0, f"rope factor {self.factor}")
        low, high = self.low_freq_factor, self.high_freq_factor
        _require(
            0.0 < low < high < math.inf,
            f"rope low_freq_factor {low} must be above 0 and below high_freq_factor {high}",
        )
        n_tokens = self.original_context_tokens
        _require(
            1 <= n_tokens <= _MAX_SIZES["context_tokens"],
            f"rope original_max_position_embeddings {n_tokens}",
        )


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides a model's arithmetic, and its special tokens.

    `n_columns` is the MLP width F, `context_tokens` the longest trained context. `eos_ids`
    are all tokens that end a text.
    """

    family: str
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_columns: int
    vocab_size: int
    context_tokens: int
    norm_eps: float
    rope: RopeConfig
    tied_embeddings: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def geometry(self, fmt: WeightFormat) -> Geometry:
        """Return the array shapes of the model with its weights stored as `fmt`."""
        return Geometry(
            hidden_size=self.hidden_size,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            n_columns=self.n_columns,
            vocab_size=self.vocab_size,
            fmt=fmt,
            norm_eps=self.norm_eps,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
        )

    def inv_freq(self) -> npt.NDArray[np.float64]:
        """Return the rotation per position of each dimension pair: (head_dim / 2,) float64.

        default   f_i = theta ** (-2i / d)
        linear    f_i / factor
        llama3    long waves (> n / low) f_i / factor, short waves (< n / high) f_i, between
                  them a blend linear in n / wavelength; n = original_context_tokens
        """
        rope = self.rope
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        freq = rope.theta**-exponents
        if rope.kind == "default":
            return freq
        if rope.kind == "linear":
            return freq / rope.factor
        n_waves = rope.original_context_tokens * freq / (2.0 * math.pi)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        kept_share = np.clip((n_waves - low) / (high - low), 0.0, 1.0)
        blended: npt.NDArray[np.float64] = freq * (kept_share + (1.0 - kept_share) / rope.factor)
        return blended

    def validate(self) -> None:
        """Raise ModelError unless sizes fit each other and stay within sane bounds."""
        for name, most in _MAX_SIZES.items():
            size = getattr(self, name)
            _require(1 <= size <= most, f"{name} is {size}, allowed are 1 to {most}")
        _require(
            self.n_heads % self.n_kv_heads == 0,
            f"{self.n_heads} attention heads cannot be shared out over {self.n_kv_heads} KV heads",
        )
        _require(self.head_dim % 2 == 0, f"head_dim {self.head_dim} is odd, RoPE rotates pairs")
        _require(0.0 < self.norm_eps < 1.0, f"norm epsilon {self.norm_eps}")
        self.rope.validate()
        special_ids = self.eos_ids if self.bos_id is None else (self.bos_id, *self.eos_ids)
        for token_id in special_ids:
            _require(
                0 <= token_id < self.vocab_size,
                f"BOS or EOS token {token_id} is outside the vocabulary of {self.vocab_size}",
            )
