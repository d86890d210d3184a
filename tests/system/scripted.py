"""Models that write what a test says: after each token its successor, whatever came before.

Embeddings are random directions, attention and MLP add nothing, and the head's row of a token is
the direction of its predecessor: its logit is by far the largest. The tokenizer has one token a
byte, so that any text, cut anywhere, can be written; a text must not use a byte twice.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.unit.tiny_checkpoint import make_checkpoint, random_tensors
from weights.convert import convert

__all__ = ["BOS", "EOS", "scripted_model"]

BOS, EOS, FIRST_BYTE = 0, 1, 2
VOCAB_SIZE = FIRST_BYTE + 256 + 41

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "intermediate_size": 96, "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip


def byte_characters() -> dict[int, str]:
    """Return the character by which byte-level tokenizers write each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    return {**table, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


def tokenizer_json() -> dict[str, Any]:
    special = [
        {"id": token_id, "content": text, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for token_id, text in ((BOS, "<s>"), (EOS, "</s>"))
    ]  # fmt: skip
    vocab = {token["content"]: token["id"] for token in special}
    vocab |= {character: FIRST_BYTE + byte for byte, character in byte_characters().items()}
    vocab |= {f"unused{i}": i for i in range(FIRST_BYTE + 256, VOCAB_SIZE)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False,
                  "trim_offsets": True}  # fmt: skip
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": template,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": []},
    }  # fmt: skip


def scripted_model(root: Path, text: str, ends: bool = True) -> Path:
    """Make a model that writes `text` after BOS, then EOS (if it `ends`) or the text again."""
    tokens = [FIRST_BYTE + byte for byte in text.encode()]
    assert len(set(tokens)) == len(tokens), "a text must not use a byte twice"
    chain = [BOS, *tokens, EOS if ends else tokens[0]]
    tensors = random_tensors(CONFIG)
    rng = np.random.default_rng(4)
    directions = rng.standard_normal((VOCAB_SIZE, CONFIG["hidden_size"])).astype(np.float32)
    head = np.zeros_like(directions)
    for token, successor in itertools.pairwise(chain):
        head[successor] += directions[token]
    for name, values in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            values[:] = 0
        elif name.endswith("norm.weight"):
            values[:] = 1
    tensors["model.embed_tokens.weight"], tensors["lm_head.weight"] = directions, head
    source = root / "source"
    make_checkpoint(source, CONFIG, tensors)
    (source / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    convert(source, root / "scripted", "q8")
    return root / "scripted"
