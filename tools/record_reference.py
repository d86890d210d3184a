"""Records tiny random models and their logits from transformers, for tests/data.

Needs torch and transformers (dependency group `train`); run it once:

    python tools/record_reference.py tests/data

Each model is one directory: config.json, safetensors (single or sharded), and reference.npz:

    prompt_ids   (n_prompt,) int64
    greedy_ids   (n_new,) int64      the greedy continuation
    logits       (n_prompt + n_new, vocab_size) float32   after each token of both

Weights are scaled up against the usual initialisation so that no greedy step is a near-tie:
a model is drawn again until the best token leads by at least 0.1 everywhere.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["MODELS", "TinyModel", "main", "record"]

N_PROMPT, N_NEW = 13, 32
MIN_LEAD = 0.1
BOS_ID, EOS_ID = 1, 2


class TinyModel(NamedTuple):
    """A model to record: its config and how its checkpoint is stored."""

    family: str
    dtype: str
    shard_bytes: int
    config: dict[str, Any]


def _shape(
    d: int, layers: int, heads: tuple[int, int, int], columns: int, vocab: int
) -> dict[str, Any]:
    """Return the sizes of a config; `heads` is query heads, KV heads, head_dim."""
    return {
        "hidden_size": d,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "intermediate_size": columns,
        "vocab_size": vocab,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }


_WHOLE = 1 << 30

MODELS = {
    "llama-linear": TinyModel(
        "llama",
        "float32",
        _WHOLE,
        {
            **_shape(32, 3, (4, 4, 8), 44, 131),
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
    "llama-llama3": TinyModel(
        "llama",
        "bfloat16",
        50_000,
        {
            **_shape(40, 2, (4, 1, 48), 72, 99),
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "mistral": TinyModel(
        "mistral",
        "float16",
        _WHOLE,
        {
            **_shape(40, 2, (4, 1, 80), 50, 113),
            "tie_word_embeddings": False,
            "sliding_window": 128,
        },
    ),
    "qwen2": TinyModel(
        "qwen2",
        "bfloat16",
        60_000,
        {**_shape(56, 2, (14, 2, 8), 90, 151), "tie_word_embeddings": True},
    ),
    "qwen3": TinyModel(
        "qwen3",
        "float16",
        _WHOLE,
        {**_shape(64, 2, (3, 3, 48), 61, 137), "tie_word_embeddings": False},
    ),
}


def _build(tiny: TinyModel, seed: int) -> Any:
    """Return the model with float32 numbers that its stored type holds exactly."""
    import torch
    import transformers

    classes = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    stem = classes[tiny.family]
    config = getattr(transformers, f"{stem}Config")(**tiny.config, attn_implementation="eager")
    model = getattr(transformers, f"{stem}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    stored = getattr(torch, tiny.dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.3, generator=generator)
            else:
                is_head = name.startswith("lm_head") or "embed" in name
                deviation = (3.0 if is_head else 1.5) / weight.shape[1] ** 0.5
                weight.normal_(0.0, deviation, generator=generator)
            weight.copy_(weight.to(stored).float())
    return model


def _logits(model: Any, ids: list[int]) -> npt.NDArray[np.float32]:
    import torch

    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def _greedy(model: Any, prompt_ids: list[int]) -> list[int]:
    ids = list(prompt_ids)
    for _ in range(N_NEW):
        ids.append(int(_logits(model, ids)[-1].argmax()))
    return ids


def record(name: str, out: Path) -> None:
    """Write one model and its reference to `out` / `name`, replacing what was there."""
    import torch

    tiny = MODELS[name]
    vocab_size = int(tiny.config["vocab_size"])
    for seed in range(1000):
        model = _build(tiny, seed)
        rng = np.random.default_rng(seed)
        prompt_ids = [BOS_ID, *rng.integers(3, vocab_size, N_PROMPT - 1).tolist()]
        ids = _greedy(model, prompt_ids)
        logits = _logits(model, ids)
        best = np.sort(logits[N_PROMPT - 1 :], axis=1)
        lead = float((best[:, -1] - best[:, -2]).min())
        new_ids = ids[N_PROMPT:]
        if lead >= MIN_LEAD and EOS_ID not in new_ids and len(set(new_ids)) > N_NEW // 3:
            break
    else:
        sys.exit(f"error: no seed gives {name} a clear greedy continuation")
    path = out / name
    shutil.rmtree(path, ignore_errors=True)
    stored = model.to(getattr(torch, tiny.dtype))
    stored.save_pretrained(path, max_shard_size=tiny.shard_bytes)
    (path / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(
        path / "reference.npz",
        prompt_ids=np.array(prompt_ids, np.int64),
        greedy_ids=np.array(new_ids, np.int64),
        logits=logits,
    )
    for file in path.iterdir():
        file.chmod(0o644)
    n_bytes = sum(file.stat().st_size for file in path.iterdir())
    print(f"{name}: seed {seed}, lead {lead:.3f}, logits to {abs(logits).max():.1f}, {n_bytes} B")


def main() -> int:
    """Record all models, or the named ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="directory of test data, tests/data")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)} (default all)")
    args = parser.parse_args()
    for name in args.names or MODELS:
        record(name, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
