"""The independent oracle: a decoder-only model from its equations, float64, plain matrices.

Knows no tiles, pages, threads or atoms. Written for reading, not for speed.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kernels.layout import Geometry

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NaiveLayer:
    """Plain float64 matrices of one layer, rows = outputs."""

    attn_norm: F64  # (D,)
    mlp_norm: F64  # (D,)
    q: F64  # (H * d, D)
    k: F64  # (G * d, D)
    v: F64  # (G * d, D)
    o: F64  # (D, H * d)
    gate: F64  # (F, D)
    up: F64  # (F, D)
    down: F64  # (D, F)
    q_bias: F64  # (H * d,), zeros if the model has none
    k_bias: F64
    v_bias: F64
    q_norm: F64 | None = None  # (d,)
    k_norm: F64 | None = None


@dataclass(frozen=True)
class NaiveModel:
    """A whole model."""

    geometry: Geometry
    layers: list[NaiveLayer]
    final_norm: F64  # (D,)
    head: F64  # (V, D)
    inv_freq: F64  # (d / 2,)
    rope_scale: float = 1.0
    kv_dtype: type = field(default=np.float64)  # keys and values are rounded to it, see `kept`
    int8: bool = False  # inputs of matrices are rounded to 8 bits in blocks of 32


def rms_norm(x: F64, gain: F64, eps: float) -> F64:
    """x / sqrt(mean(x^2) + eps) * gain over the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gain


def rope(x: F64, positions: F64, inv_freq: F64, factor: float = 1.0) -> F64:
    """Rotate x (T, heads, d): halves (a, b) become (a cos - b sin, b cos + a sin)."""
    angle = positions[:, None] * inv_freq[None, :]
    cos, sin = np.cos(angle)[:, None, :] * factor, np.sin(angle)[:, None, :] * factor
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def softmax(x: F64) -> F64:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x: F64) -> F64:
    return x / (1 + np.exp(-x))


def rounded(model: NaiveModel, x: F64, width: int = 0) -> F64:
    """x (T, n) as matrices read it: q = rint(127 x / max) per 32 values, anew every `width`."""
    if not model.int8:
        return x
    out = np.zeros_like(x)
    width = width or x.shape[1]
    for piece in range(0, x.shape[1], width):
        for start in range(piece, min(piece + width, x.shape[1]), 32):
            block = x[:, start : min(start + 32, piece + width)]
            scale = np.abs(block).max(axis=1, keepdims=True) / 127
            q = np.rint(np.divide(block, scale, out=np.zeros_like(block), where=scale > 0))
            out[:, start : start + block.shape[1]] = q * scale
    return out


def kept(model: NaiveModel, x: F64) -> F64:
    """Keys or values x (T, G, d) as the cache has them; int8: rint(127 x / max) per position."""
    if model.kv_dtype != np.int8:
        return x.astype(model.kv_dtype).astype(np.float64)
    scale = np.abs(x).max(axis=2, keepdims=True) / 127
    return np.rint(np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)) * scale


def attention_heads(model: NaiveModel, layer: NaiveLayer, x: F64) -> F64:
    """Outputs of all query heads (T, H, d) for one whole context x (T, D), before W_o."""
    g = model.geometry
    n, d = len(x), g.head_dim
    h = rounded(model, rms_norm(x, layer.attn_norm, g.norm_eps))
    q = (h @ layer.q.T + layer.q_bias).reshape(n, g.n_heads, d)
    k = (h @ layer.k.T + layer.k_bias).reshape(n, g.n_kv_heads, d)
    v = (h @ layer.v.T + layer.v_bias).reshape(n, g.n_kv_heads, d)
    if layer.q_norm is not None and layer.k_norm is not None:
        q = rms_norm(q, layer.q_norm, g.norm_eps)
        k = rms_norm(k, layer.k_norm, g.norm_eps)
    positions = np.arange(n, dtype=np.float64)
    q = rope(q, positions, model.inv_freq, model.rope_scale)
    k = rope(k, positions, model.inv_freq, model.rope_scale)
    k, v = kept(model, k), kept(model, v)
    out = np.empty((n, g.n_heads, d))
    for head in range(g.n_heads):
        group = head // g.heads_per_group
        scores = q[:, head] @ k[:, group].T / np.sqrt(d)
        scores[np.triu_indices(n, 1)] = -np.inf
        out[:, head] = softmax(scores) @ v[:, group]
    return out


def attention(model: NaiveModel, layer: NaiveLayer, x: F64, groups: list[int]) -> F64:
    """The partial sum (T, D) of some head groups."""
    g = model.geometry
    heads = attention_heads(model, layer, x)
    width = g.heads_per_group * g.head_dim
    heads = rounded(model, heads.reshape(len(x), -1), width).reshape(heads.shape)
    out = np.zeros_like(x)
    for group in groups:
        for head in range(group * g.heads_per_group, (group + 1) * g.heads_per_group):
            out += heads[:, head] @ layer.o[:, head * g.head_dim : (head + 1) * g.head_dim].T
    return out


def mlp(model: NaiveModel, layer: NaiveLayer, x: F64, columns: list[int]) -> F64:
    """The partial sum (T, D) of some MLP columns."""
    h = rounded(model, rms_norm(x, layer.mlp_norm, model.geometry.norm_eps))
    act = rounded(model, silu(h @ layer.gate.T) * (h @ layer.up.T))
    return act[:, columns] @ layer.down[:, columns].T


def forward(model: NaiveModel, x: F64) -> tuple[F64, F64]:
    """The residual after the last layer and the logits (T, V) of one context x (T, D)."""
    g = model.geometry
    for layer in model.layers:
        x = x + attention(model, layer, x, list(range(g.n_kv_heads)))
        x = x + mlp(model, layer, x, list(range(g.n_columns)))
    h = rounded(model, rms_norm(x, model.final_norm, g.norm_eps))
    return x, h @ model.head.T
