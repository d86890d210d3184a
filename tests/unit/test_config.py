"""ModelConfig: bounds, geometry and rotation frequencies."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from kernels.errors import ModelError
from kernels.layout import WeightFormat
from weights.config import ModelConfig, RopeConfig

BASE = ModelConfig(
    family="llama",
    hidden_size=64,
    n_layers=2,
    n_heads=8,
    n_kv_heads=4,
    head_dim=8,
    n_columns=172,
    vocab_size=512,
    context_tokens=256,
    norm_eps=1e-5,
    rope=RopeConfig(10000.0),
    tied_embeddings=True,
    bos_id=1,
    eos_ids=(2,),
)


def test_a_sound_config_is_valid_and_has_its_geometry() -> None:
    BASE.validate()
    g = BASE.geometry(WeightFormat.Q8)
    assert (g.hidden_size, g.heads_per_group, g.qkv_rows, g.n_column_atoms) == (64, 2, 32, 6)
    assert g.fmt is WeightFormat.Q8


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden_size": 0}, "hidden_size is 0, allowed are 1 to 131072"),
        ({"n_layers": 10**9}, "n_layers is 1000000000, allowed are 1 to 1024"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"n_columns": 1 << 40}, "n_columns is 1099511627776"),
        ({"n_kv_heads": 3}, "8 attention heads cannot be shared out over 3 KV heads"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"norm_eps": 0.0}, "norm epsilon 0.0"),
        ({"norm_eps": math.nan}, "norm epsilon nan"),
        ({"bos_id": 512}, "token 512 is outside the vocabulary of 512"),
        ({"eos_ids": (2, -1)}, "token -1 is outside the vocabulary"),
        ({"rope": RopeConfig(math.inf)}, "rope theta inf"),
        ({"rope": RopeConfig(0.5)}, "rope theta 0.5"),
        ({"rope": RopeConfig(1e4, "linear", factor=0.0)}, "rope factor 0.0"),
        ({"rope": RopeConfig(1e4, "llama3", low_freq_factor=4.0)}, "low_freq_factor 4.0"),
        ({"rope": RopeConfig(1e4, original_context_tokens=0)}, "original_max_position"),
    ],
)
def test_absurd_sizes_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match="impossible model config") as caught:
        msgspec.structs.replace(BASE, **change).validate()
    assert text in str(caught.value)


def test_default_frequencies_fall_from_one() -> None:
    freq = BASE.inv_freq()
    assert freq.dtype == np.float64
    np.testing.assert_allclose(freq, [1.0, 0.1, 0.01, 0.001], rtol=1e-12)


def test_linear_frequencies_are_divided() -> None:
    config = msgspec.structs.replace(BASE, rope=RopeConfig(10000.0, "linear", factor=4.0))
    np.testing.assert_allclose(config.inv_freq(), BASE.inv_freq() / 4)


def _llama3_frequency(freq: float, rope: RopeConfig) -> float:
    """Return one frequency, as Meta's reference code states it."""
    wavelength = 2 * math.pi / freq
    n = rope.original_context_tokens
    if wavelength < n / rope.high_freq_factor:
        return freq
    if wavelength > n / rope.low_freq_factor:
        return freq / rope.factor
    smooth = (n / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    return (1 - smooth) * freq / rope.factor + smooth * freq


def test_llama3_frequencies_follow_the_reference() -> None:
    rope = RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    config = msgspec.structs.replace(BASE, head_dim=128, rope=rope)
    plain = 500000.0 ** -(np.arange(0, 128, 2) / 128)
    expected = [_llama3_frequency(float(f), rope) for f in plain]
    np.testing.assert_allclose(config.inv_freq(), expected, rtol=1e-12)
    assert expected[0] == plain[0]
    assert expected[-1] == pytest.approx(plain[-1] / 8)
