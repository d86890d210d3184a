"""Model families, one file each, known by `model_type` in config.json.

A family turns a raw config.json into a `ModelConfig`; the supported ones name their tensors
alike (`names`). To add one: write its file, list it in `_FAMILIES`.
"""

from collections.abc import Mapping

from kernels.errors import ModelError
from weights.config import ModelConfig
from weights.families import llama, mistral, qwen2, qwen3
from weights.families.names import TensorNames
from weights.families.raw import RawConfig

__all__ = ["SUPPORTED", "TensorNames", "read_config"]

_FAMILIES = {
    "llama": llama.read_config,
    "mistral": mistral.read_config,
    "qwen2": qwen2.read_config,
    "qwen3": qwen3.read_config,
}

SUPPORTED = tuple(sorted(_FAMILIES))


def read_config(raw: Mapping[str, object], path: str = "config.json") -> ModelConfig:
    """Return the validated config of a raw config.json; `path` is only named in errors.

    Raises:
        ModelError: unknown family, missing or impossible values, or an option that would
            change the maths and that headwise does not compute.
    """
    model_type = raw.get("model_type")
    reader = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if reader is None:
        raise ModelError(
            f"{path}: model_type {model_type!r} is not supported; "
            f"supported are {', '.join(SUPPORTED)}"
        )
    config = reader(RawConfig(raw, path))
    try:
        config.validate()
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return config
