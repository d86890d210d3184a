"""Llama 1 to 3, TinyLlama, SmolLM: RoPE default, linear or llama3, tied or untied head."""

from weights.config import ModelConfig
from weights.families.raw import RawConfig, decoder_config

__all__ = ["read_config"]


def read_config(raw: RawConfig) -> ModelConfig:
    """Return the config of a `model_type: llama`; raises ModelError."""
    return decoder_config(raw, "llama", qkv_bias=False, qk_norm=False)
