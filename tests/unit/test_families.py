"""config.json of every family: what is read, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from kernels.errors import ModelError
from tests.unit.tiny_checkpoint import TINY_CONFIG
from weights.families import SUPPORTED, TensorNames, read_config

CONFIGS = Path(__file__).parents[3] / "shared" / "models" / "configs"


def _read(**changes: Any) -> Any:
    return read_config({**TINY_CONFIG, **changes})


def _error(**changes: Any) -> str:
    with pytest.raises(ModelError) as caught:
        _read(**changes)
    return str(caught.value)


def test_llama_is_read() -> None:
    config = _read()
    assert (config.family, config.head_dim, config.n_columns) == ("llama", 6, 44)
    assert (config.bos_id, config.eos_ids) == (1, (2,))
    assert (config.tied_embeddings, config.qkv_bias, config.qk_norm) == (False, False, False)


def test_llama_without_kv_heads_has_one_per_head() -> None:
    raw = {key: value for key, value in TINY_CONFIG.items() if key != "num_key_value_heads"}
    assert read_config(raw).n_kv_heads == 4


def test_head_dim_need_not_be_hidden_size_over_heads() -> None:
    assert _read(head_dim=10).head_dim == 10
    assert _read(model_type="qwen3").head_dim == 128
    assert "must state its head_dim" in _error(num_attention_heads=5)


def test_eos_may_be_a_list_or_nothing() -> None:
    assert _read(eos_token_id=[7, 5, 7]).eos_ids == (7, 5)
    assert _read(eos_token_id=None).eos_ids == ()
    assert "eos_token_id is 'x', token ids are needed" in _error(eos_token_id="x")


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("type_key", ["type", "rope_type"])
def test_rope_is_read_from_old_and_new_configs(key: str, type_key: str) -> None:
    linear = _read(**{key: {type_key: "linear", "factor": 4}}).rope
    assert (linear.kind, linear.factor, linear.theta) == ("linear", 4.0, 10000.0)
    llama3 = _read(
        **{
            key: {
                type_key: "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
                "rope_theta": 500000,
            }
        }
    ).rope
    assert (llama3.kind, llama3.theta, llama3.original_context_tokens) == ("llama3", 5e5, 32)


def test_qwen_families_have_their_biases_and_norms() -> None:
    qwen2, qwen3 = _read(model_type="qwen2"), _read(model_type="qwen3")
    assert (qwen2.qkv_bias, qwen2.qk_norm) == (True, False)
    assert (qwen3.qkv_bias, qwen3.qk_norm) == (False, True)
    assert "model.layers.1.self_attn.k_proj.bias" in TensorNames(qwen2).shapes()
    assert TensorNames(qwen3).shapes()["model.layers.0.self_attn.q_norm.weight"] == (128,)


def test_unknown_families_name_the_supported_ones() -> None:
    assert SUPPORTED == ("llama", "mistral", "qwen2", "qwen3")
    expected = "model_type 'gpt2' is not supported; supported are llama, mistral, qwen2, qwen3"
    assert expected in _error(model_type="gpt2")
    assert "model_type None is not supported" in _error(model_type=None)
    assert "model_type ['llama'] is not supported" in _error(model_type=["llama"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"attention_bias": True}, "attention_bias is True, which is not supported"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"layer_types": ["linear_attention"]}, "layer_types holds 'linear_attention'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope type 'yarn' is not supported; supported are"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        ({"rope_scaling": 3}, "rope_scaling is 3, an object is needed"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64', a whole number is needed"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', a number is needed"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"rope_theta": float("nan")}, "rope_theta is nan, a finite number is needed"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, true or false is needed"),
        ({"num_attention_heads": 0}, "is no multiple of num_attention_heads 0"),
        ({"num_hidden_layers": 10**30}, "n_layers is 10000"),
    ],
)
def test_what_headwise_cannot_compute_is_refused(changes: dict[str, Any], text: str) -> None:
    message = _error(**changes)
    assert message.startswith("config.json")
    assert text in message


def test_windows_shorter_than_the_context_are_refused() -> None:
    text = "a sliding window of 32 tokens, shorter than the context of 64, is not supported"
    assert text in _error(model_type="mistral", sliding_window=32)
    assert text in _error(sliding_window=32, layer_types=["full_attention", "sliding_attention"])
    used = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 32}
    assert text in _error(model_type="qwen2", **used)
    assert text in _error(model_type="qwen3", **used)


def test_windows_that_reach_over_the_context_are_accepted() -> None:
    assert _read(model_type="mistral", sliding_window=64).context_tokens == 64
    assert _read(model_type="mistral", sliding_window=None).context_tokens == 64
    assert _read(model_type="qwen2", use_sliding_window=False, sliding_window=8).n_layers == 2
    assert _read(model_type="qwen2", use_sliding_window=True, max_window_layers=2, sliding_window=8)


def test_mistral_without_a_stated_window_has_4096() -> None:
    assert "window of 4096" in _error(model_type="mistral", max_position_embeddings=8192)


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="../shared/models/configs is absent")
@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("Llama-3.2-1B.config", ("llama", 64, 8, "llama3", True)),
        ("tinyllama_1b_chat_v1.0", ("llama", 64, 4, "default", False)),
        ("smollm2_360m", ("llama", 64, 5, "default", True)),
        ("llama2_7b", ("llama", 128, 32, "default", False)),
        ("mistral_7b_v03", ("mistral", 128, 8, "default", False)),
        ("qwen2_0_5b", ("qwen2", 64, 2, "default", True)),
        ("qwen3_0.6b", ("qwen3", 128, 8, "default", True)),
    ],
)
def test_published_configs_are_read(name: str, facts: tuple[object, ...]) -> None:
    config = read_config(json.loads((CONFIGS / f"{name}.json").read_text()))
    found = (
        config.family,
        config.head_dim,
        config.n_kv_heads,
        config.rope.kind,
        config.tied_embeddings,
    )
    assert found == facts


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="../shared/models/configs is absent")
@pytest.mark.parametrize("name", ["gemma2_2b", "gpt2", "phi-4", "starcoder2", "mistral_7b"])
def test_other_published_configs_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="is not supported; supported"):
        read_config(json.loads((CONFIGS / f"{name}.json").read_text()))
