"""Qwen3 (dense): RMSNorm on each q and k head, head_dim independent of D/H, no biases."""

from weights.config import ModelConfig
from weights.families.qwen2 import refuse_used_window
from weights.families.raw import RawConfig, decoder_config

__all__ = ["read_config"]

# transformers' default when config.json does not state it.
_DEFAULT_HEAD_DIM = 128


def read_config(raw: RawConfig) -> ModelConfig:
    """Return the config of a `model_type: qwen3`; raises ModelError."""
    config = decoder_config(
        raw, "qwen3", default_head_dim=_DEFAULT_HEAD_DIM, qkv_bias=False, qk_norm=True
    )
    refuse_used_window(raw, config)
    return config
