"""Typed reading of a raw config.json, and the options that every family shares."""

import math
from collections.abc import Mapping
from typing import Any

from kernels.errors import ModelError
from weights.config import ModelConfig, RopeConfig

__all__ = ["RawConfig", "decoder_config", "refuse_short_window"]

# Options that change the maths, with the values that leave it as headwise computes it.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1, 1.0),
    "rope_interleaved": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "logit_scale": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "clip_qkv": (),
    "no_rope_layers": ([],),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "quantization_config": (),
}

_ROPE_KINDS = ("default", "linear", "llama3")


class RawConfig:
    """A config.json with typed look-ups; each raises ModelError naming file, key and value."""

    def __init__(self, raw: Mapping[str, object], path: str) -> None:
        self._raw = raw
        self.path = path

    def _value(self, key: str, default: object) -> Any:
        value = self._raw.get(key)
        if value is not None:
            return value
        if default is None:
            raise ModelError(f"{self.path}: {key} is missing; a complete config.json is needed")
        return default

    def size(self, key: str, default: int | None = None) -> int:
        """Return a whole number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"{self.path}: {key} is {value!r}, a whole number is needed")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = self._value(key, default)
        # Comparing first: math.isfinite overflows on huge whole numbers.
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
            raise ModelError(f"{self.path}: {key} is {value!r}, a number is needed")
        if not math.isfinite(value):
            raise ModelError(f"{self.path}: {key} is {value!r}, a finite number is needed")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self.path}: {key} is {value!r}, true or false is needed")
        return value

    def names(self, key: str) -> bool:
        """Tell whether the key is present, be it null."""
        return key in self._raw

    def has(self, key: str) -> bool:
        """Tell whether the key is present and not null."""
        return self._raw.get(key) is not None

    def ids(self, key: str) -> tuple[int, ...]:
        """Return token ids given as nothing, one number or a list."""
        value = self._raw.get(key)
        values = [] if value is None else value if isinstance(value, list) else [value]
        for token_id in values:
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                raise ModelError(f"{self.path}: {key} is {value!r}, token ids are needed")
        return tuple(dict.fromkeys(values))

    def table(self, key: str) -> "RawConfig":
        """Return a nested object, empty if the key is absent."""
        value = self._raw.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise ModelError(f"{self.path}: {key} is {value!r}, an object is needed")
        return RawConfig(value, f"{self.path}: {key}")

    def text(self, key: str, default: str) -> str:
        """Return a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise ModelError(f"{self.path}: {key} is {value!r}, a text is needed")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings, empty if the key is absent."""
        values = self._raw.get(key) or []
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise ModelError(f"{self.path}: {key} is {values!r}, a list of texts is needed")
        return tuple(values)

    def refuse_unknown_maths(self) -> None:
        """Raise ModelError for options under which headwise would compute something else."""
        for key, neutral in _NEUTRAL.items():
            value = self._raw.get(key)
            if value is not None and value not in neutral:
                allowed = " or ".join(repr(v) for v in neutral) or "no such option"
                raise ModelError(
                    f"{self.path}: {key} is {value!r}, which is not supported; "
                    f"supported is {allowed}"
                )


def _rope(raw: RawConfig, context_tokens: int) -> RopeConfig:
    # transformers 5 writes rope_parameters (theta inside), older ones rope_scaling beside it.
    key = "rope_parameters" if raw.has("rope_parameters") else "rope_scaling"
    table = raw.table(key)
    table.refuse_unknown_maths()
    theta = table.real("rope_theta", raw.real("rope_theta", 10000.0))
    kind = table.text("rope_type", table.text("type", "default"))
    if kind == "linear":
        return RopeConfig(theta, "linear", factor=table.real("factor"))
    if kind == "llama3":
        return RopeConfig(
            theta,
            "llama3",
            factor=table.real("factor"),
            low_freq_factor=table.real("low_freq_factor"),
            high_freq_factor=table.real("high_freq_factor"),
            original_context_tokens=table.size("original_max_position_embeddings", context_tokens),
        )
    if kind != "default":
        raise ModelError(
            f"{raw.path}: rope type {kind!r} is not supported; "
            f"supported are {', '.join(_ROPE_KINDS)}"
        )
    return RopeConfig(theta)


def _refuse_layer_types(raw: RawConfig, context_tokens: int) -> None:
    for layer_type in raw.texts("layer_types"):
        if layer_type == "sliding_attention":
            refuse_short_window(raw, raw.size("sliding_window"), context_tokens)
        elif layer_type != "full_attention":
            raise ModelError(
                f"{raw.path}: layer_types holds {layer_type!r}, which is not supported; "
                f"supported is 'full_attention'"
            )


def _head_dim(raw: RawConfig, default: int, hidden_size: int, n_heads: int) -> int:
    if raw.has("head_dim") or default:
        return raw.size("head_dim", default)
    if n_heads < 1 or hidden_size % n_heads:
        raise ModelError(
            f"{raw.path}: hidden_size {hidden_size} is no multiple of num_attention_heads "
            f"{n_heads}; such a model must state its head_dim"
        )
    return hidden_size // n_heads


def decoder_config(
    raw: RawConfig, family: str, *, default_head_dim: int = 0, qkv_bias: bool, qk_norm: bool
) -> ModelConfig:
    """Read what all Llama-shaped decoders share.

    `default_head_dim` stands in for an absent head_dim; 0 means hidden_size / heads.

    Raises:
        ModelError: a value is missing, of the wrong kind or unsupported.
    """
    raw.refuse_unknown_maths()
    hidden_size = raw.size("hidden_size")
    n_heads = raw.size("num_attention_heads")
    context_tokens = raw.size("max_position_embeddings")
    _refuse_layer_types(raw, context_tokens)
    bos_ids = raw.ids("bos_token_id")
    return ModelConfig(
        family=family,
        hidden_size=hidden_size,
        n_layers=raw.size("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=raw.size("num_key_value_heads", n_heads),
        head_dim=_head_dim(raw, default_head_dim, hidden_size, n_heads),
        n_columns=raw.size("intermediate_size"),
        vocab_size=raw.size("vocab_size"),
        context_tokens=context_tokens,
        norm_eps=raw.real("rms_norm_eps", 1e-6),
        rope=_rope(raw, context_tokens),
        tied_embeddings=raw.flag("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        bos_id=bos_ids[0] if bos_ids else None,
        eos_ids=raw.ids("eos_token_id"),
    )


def refuse_short_window(raw: RawConfig, window_tokens: int, context_tokens: int) -> None:
    """Raise ModelError if attention would look back less far than the context reaches."""
    if window_tokens < context_tokens:
        raise ModelError(
            f"{raw.path}: a sliding window of {window_tokens} tokens, shorter than the context "
            f"of {context_tokens}, is not supported; supported is attention over the whole "
            f"context (with max_position_embeddings {window_tokens} the model can be used "
            f"within its window)"
        )
