"""PyTorch as a peer of `tools.bench_peers`, in a process of its own: `-m tools.peer_torch`.

What a plain implementation reaches: `nn.Linear` in f32 or, for q8, dynamically quantised to 8
bits (one scale a matrix, so coarser than ours), fused query/key/value and gate/up matrices,
`scaled_dot_product_attention` over f32 keys and values, no compilation.
"""

import sys
import time
from typing import Any

from tools.peer_child import PeerError, Request, Shape, Task, serve

__all__ = ["TorchPeer"]

# Every token of a made-up context, and every embedding.
_DEVIATION = 0.02


class TorchPeer:
    """A model of random weights and a context that holds made-up keys and values.

    Raises:
        PeerError: it has no such format.
    """

    def __init__(self, task: Task) -> None:
        import torch

        if task.dtype not in ("f32", "q8"):
            raise PeerError(f"the torch peer has f32 and q8, not {task.dtype}")
        self._torch: Any = torch
        torch.manual_seed(0)
        weights = "int8 dynamic" if task.dtype == "q8" else "f32"
        self.settings: tuple[str, ...] = (f"{weights}, KV f32",)
        self.about = {"torch": torch.__version__, "int8_engine": torch.backends.quantized.engine}
        with torch.inference_mode():
            self._model = _Model(torch, task)

    def measure_s(self, request: Request) -> float:
        """Return the seconds of one repeat, after one token to warm up."""
        if self._torch.get_num_threads() != request.threads:
            self._torch.set_num_threads(request.threads)
        sizes = [request.n_tokens] if request.phase == "pp" else [1] * request.n_tokens
        with self._torch.inference_mode():
            self._model.run(request.depth, 1)
            started_s = time.perf_counter()
            first = request.depth
            for size in sizes:
                logits = self._model.run(first, size)
                first += size
            seconds = time.perf_counter() - started_s
            if not (logits.isfinite().all() and logits.any()):
                raise PeerError("torch gave logits that are not finite, or all zero")
        return seconds


class _Layer:
    """One decoder layer's weights and its keys and values."""

    def __init__(self, torch: Any, shape: Shape, context_tokens: int, quantise: bool) -> None:
        d, q_rows = shape.hidden_size, shape.n_heads * shape.head_dim
        rows = q_rows + 2 * shape.n_kv_heads * shape.head_dim
        self.qkv = _linear(torch, d, rows, quantise, bias=shape.qkv_bias)
        self.o = _linear(torch, q_rows, d, quantise)
        self.gate_up = _linear(torch, d, 2 * shape.n_columns, quantise)
        self.down = _linear(torch, shape.n_columns, d, quantise)
        self.norms = [torch.rand(d) + 0.5 for _ in range(2)]
        self.head_norms = [torch.rand(shape.head_dim) + 0.5 for _ in range(2)]
        kv = (1, shape.n_kv_heads, context_tokens, shape.head_dim)
        self.keys, self.values = torch.randn(kv), torch.randn(kv)


class _Model:
    def __init__(self, torch: Any, task: Task) -> None:
        self._torch, self._shape = torch, task.shape
        self._functional: Any = torch.nn.functional
        shape, n_tokens = task.shape, task.context_tokens
        quantise = task.dtype == "q8"
        self._layers = [_Layer(torch, shape, n_tokens, quantise) for _ in range(shape.n_layers)]
        self._vocab = _linear(torch, shape.hidden_size, shape.vocab_size, quantise)
        self._norm = torch.rand(shape.hidden_size) + 0.5
        self._embeddings = _DEVIATION * torch.randn(n_tokens, shape.hidden_size)
        half = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        angles = torch.arange(n_tokens)[:, None] * shape.rope_theta**-half
        self._cos, self._sin = angles.cos(), angles.sin()

    def run(self, first: int, n_tokens: int) -> Any:
        """Run n_tokens from position `first` on; return the logits of the last one."""
        x = self._embeddings[first : first + n_tokens]
        mask = None
        if n_tokens > 1:
            # Each token sees what was there before, and its forerunners.
            seen = self._torch.arange(first + n_tokens)
            mask = seen[None] <= seen[first:, None]
        for layer in self._layers:
            x = x + self._attend(layer, self._normed(x, layer.norms[0]), first, mask)
            gate_up = layer.gate_up(self._normed(x, layer.norms[1]))
            gate, up = gate_up.chunk(2, dim=-1)
            x = x + layer.down(self._functional.silu(gate) * up)
        return self._vocab(self._normed(x[-1:], self._norm))

    def _attend(self, layer: _Layer, x: Any, first: int, mask: Any) -> Any:
        shape, stop = self._shape, first + x.shape[0]
        heads = layer.qkv(x).view(x.shape[0], -1, shape.head_dim).transpose(0, 1)
        n, g = shape.n_heads, shape.n_kv_heads
        q, k, v = heads[:n], heads[n : n + g], heads[n + g :]
        if shape.qk_norm:
            q, k = (self._normed(h, w) for h, w in zip((q, k), layer.head_norms, strict=True))
        layer.keys[0, :, first:stop] = self._turned(k, first, stop)
        layer.values[0, :, first:stop] = v
        mixed = self._functional.scaled_dot_product_attention(
            self._turned(q, first, stop)[None], layer.keys[:, :, :stop],
            layer.values[:, :, :stop], attn_mask=mask, enable_gqa=n != g,
        )  # fmt: skip
        return layer.o(mixed[0].transpose(0, 1).reshape(x.shape[0], -1))

    def _turned(self, heads: Any, first: int, stop: int) -> Any:
        cos, sin = self._cos[first:stop], self._sin[first:stop]
        a, b = heads.chunk(2, dim=-1)
        return self._torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def _normed(self, x: Any, weight: Any) -> Any:
        return self._functional.rms_norm(x, weight.shape, weight, self._shape.norm_eps)


def _linear(torch: Any, n_in: int, n_out: int, quantise: bool, *, bias: bool = False) -> Any:
    layer = torch.nn.Linear(n_in, n_out, bias=bias)
    if not quantise:
        return layer
    # One at a time: the f32 numbers of a whole model are not there at once.
    holder = torch.nn.Sequential(layer)
    return torch.ao.quantization.quantize_dynamic(holder, {torch.nn.Linear}, torch.qint8)[0]


if __name__ == "__main__":
    sys.exit(serve(TorchPeer))
