"""Compute the demo model in plain PyTorch, and read and write it as a Hugging Face directory.

Does: shape, first weights, forward pass, greedy decoding, files. Does not: train it
(`tools/train_demo.py`) or judge what it writes (`tools/demo_report.py`).
Needs torch, tokenizers and safetensors, imported only when used.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

UNK, BOS, EOS = 0, 1, 2
SPECIALS: Final = ("<unk>", "<s>", "</s>")


class Shape(NamedTuple):
    """Sizes of the model; the names are those of `config.json`."""

    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 24
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


Params = dict[str, "torch.Tensor"]


def parameter_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and size every tensor, as Llama checkpoints do: a matrix is (outputs, inputs)."""
    hidden, columns = shape.hidden_size, shape.intermediate_size
    q_rows = shape.num_attention_heads * shape.head_dim
    kv_rows = shape.num_key_value_heads * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "self_attn.q_proj.weight"] = (q_rows, hidden)
        shapes[prefix + "self_attn.k_proj.weight"] = (kv_rows, hidden)
        shapes[prefix + "self_attn.v_proj.weight"] = (kv_rows, hidden)
        shapes[prefix + "self_attn.o_proj.weight"] = (hidden, q_rows)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        shapes[prefix + "mlp.gate_proj.weight"] = (columns, hidden)
        shapes[prefix + "mlp.up_proj.weight"] = (columns, hidden)
        shapes[prefix + "mlp.down_proj.weight"] = (hidden, columns)
    shapes["model.norm.weight"] = (hidden,)
    return shapes


def init_params(shape: Shape) -> Params:
    """Draw the first weights: norms 1, embedding 0.05, matrices scaled by their input size."""
    import torch

    params: Params = {}
    for name, size in parameter_shapes(shape).items():
        if len(size) == 1:
            value = torch.ones(size)
        else:
            std = 0.05 if "embed" in name else size[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * shape.num_hidden_layers)
            value = torch.randn(size) * std
        params[name] = value.requires_grad_()
    return params


def _rope_tables(shape: Shape, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin, each (n_tokens, head_dim), both halves alike."""
    import torch

    half = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
    angles = torch.outer(torch.arange(n_tokens).float(), shape.rope_theta**-half)
    angles = torch.cat((angles, angles), dim=1)
    return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    import torch

    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def forward(params: Params, shape: Shape, ids: torch.Tensor) -> torch.Tensor:
    """Compute logits (batch, tokens, vocab) of ids (batch, tokens)."""
    from torch.nn import functional as nn

    batch, n_tokens = ids.shape
    cos, sin = _rope_tables(shape, n_tokens)
    share = shape.num_attention_heads // shape.num_key_value_heads

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return nn.rms_norm(x, (shape.hidden_size,), params[name], shape.rms_norm_eps)

    def heads(x: torch.Tensor, name: str) -> torch.Tensor:
        return nn.linear(x, params[name]).view(batch, n_tokens, -1, shape.head_dim).transpose(1, 2)

    x = nn.embedding(ids, params["model.embed_tokens.weight"])
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        h = norm(x, prefix + "input_layernorm.weight")
        q = _rotate(heads(h, prefix + "self_attn.q_proj.weight"), cos, sin)
        k = _rotate(heads(h, prefix + "self_attn.k_proj.weight"), cos, sin)
        v = heads(h, prefix + "self_attn.v_proj.weight")
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        mixed = nn.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, n_tokens, -1)
        x = x + nn.linear(mixed, params[prefix + "self_attn.o_proj.weight"])
        h = norm(x, prefix + "post_attention_layernorm.weight")
        gate = nn.silu(nn.linear(h, params[prefix + "mlp.gate_proj.weight"]))
        up = nn.linear(h, params[prefix + "mlp.up_proj.weight"])
        x = x + nn.linear(gate * up, params[prefix + "mlp.down_proj.weight"])
    return nn.linear(norm(x, "model.norm.weight"), params["model.embed_tokens.weight"])


def greedy(params: Params, shape: Shape, ids: list[int], max_tokens: int = 320) -> list[int]:
    """Continue ids greedily to `</s>` or max_tokens; return the new ids, without `</s>`."""
    import torch

    new: list[int] = []
    with torch.no_grad():
        for _ in range(max_tokens):
            logits = forward(params, shape, torch.tensor([ids + new]))
            token = int(logits[0, -1].argmax())
            if token == EOS:
                break
            new.append(token)
    return new


def write_model(out: Path, params: Params, shape: Shape, tokenizer: Tokenizer) -> None:
    """Write a Hugging Face directory; each file replaces its predecessor in one step."""
    from safetensors.torch import save_file

    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(aside / "tokenizer.json"))
    tensors = {name: value.detach().contiguous() for name, value in params.items()}
    save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
    tokens = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": UNK}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shape._asdict(),
        **tokens,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": SPECIALS[UNK],
        "pad_token": SPECIALS[UNK],
        "bos_token": SPECIALS[BOS],
        "eos_token": SPECIALS[EOS],
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.max_position_embeddings,
    }
    generation = {**tokens, "do_sample": False, "max_new_tokens": 320}
    files = {
        "config.json": config,
        "tokenizer_config.json": tokenizer_config,
        "generation_config.json": generation,
    }
    for name, content in files.items():
        (aside / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for path in aside.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner can read
        path.replace(out / path.name)
    aside.rmdir()


def read_model(directory: Path) -> tuple[Params, Tokenizer]:
    """Read what write_model wrote."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return load_file(directory / "model.safetensors"), tokenizer
