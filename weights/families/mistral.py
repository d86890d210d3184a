"""Mistral 7B and Nemo: a Llama whose attention may look back through a sliding window."""

from weights.config import ModelConfig
from weights.families.raw import RawConfig, decoder_config, refuse_short_window

__all__ = ["read_config"]

# What transformers assumes when config.json does not name a window at all.
_DEFAULT_WINDOW_TOKENS = 4096


def read_config(raw: RawConfig) -> ModelConfig:
    """Return the config of a `model_type: mistral`; raises ModelError."""
    config = decoder_config(raw, "mistral", qkv_bias=False, qk_norm=False)
    if raw.has("sliding_window") or not raw.names("sliding_window"):
        window_tokens = raw.size("sliding_window", _DEFAULT_WINDOW_TOKENS)
        refuse_short_window(raw, window_tokens, config.context_tokens)
    return config
