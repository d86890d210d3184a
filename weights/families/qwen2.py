"""Qwen2 and Qwen2.5: a Llama with biases on q, k and v."""

from weights.config import ModelConfig
from weights.families.raw import RawConfig, decoder_config, refuse_short_window

__all__ = ["read_config", "refuse_used_window"]


def refuse_used_window(raw: RawConfig, config: ModelConfig) -> None:
    """Raise ModelError if any layer of a Qwen model uses a window shorter than the context."""
    if not raw.flag("use_sliding_window", False):
        return
    # Layers from max_window_layers on look through the window, the ones before do not.
    if raw.size("max_window_layers", 28) < config.n_layers:
        refuse_short_window(raw, raw.size("sliding_window", 4096), config.context_tokens)


def read_config(raw: RawConfig) -> ModelConfig:
    """Return the config of a `model_type: qwen2`; raises ModelError."""
    config = decoder_config(raw, "qwen2", qkv_bias=True, qk_norm=False)
    refuse_used_window(raw, config)
    return config
