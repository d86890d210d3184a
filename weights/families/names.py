"""Names and shapes of checkpoint tensors, as transformers writes them for Llama-like models."""

from typing import NamedTuple

from weights.config import ModelConfig

__all__ = ["LayerTensors", "TensorNames"]


class LayerTensors(NamedTuple):
    """Tensor names of one layer; biases and head norms are empty strings where absent."""

    attn_norm: str
    q: str
    k: str
    v: str
    o: str
    q_bias: str
    k_bias: str
    v_bias: str
    q_norm: str
    k_norm: str
    mlp_norm: str
    gate: str
    up: str
    down: str


class TensorNames:
    """Which tensors a model of `config` needs, and their shapes."""

    embedding = "model.embed_tokens.weight"
    final_norm = "model.norm.weight"

    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    @property
    def lm_head(self) -> str:
        """Name of the output matrix: the embedding itself when the two are tied."""
        return self.embedding if self._config.tied_embeddings else "lm_head.weight"

    def layer(self, layer: int) -> LayerTensors:
        """Return the names of one layer's tensors."""
        base = f"model.layers.{layer}."
        attn, mlp = base + "self_attn.", base + "mlp."
        has_bias, has_norm = self._config.qkv_bias, self._config.qk_norm
        return LayerTensors(
            attn_norm=base + "input_layernorm.weight",
            q=attn + "q_proj.weight",
            k=attn + "k_proj.weight",
            v=attn + "v_proj.weight",
            o=attn + "o_proj.weight",
            q_bias=attn + "q_proj.bias" if has_bias else "",
            k_bias=attn + "k_proj.bias" if has_bias else "",
            v_bias=attn + "v_proj.bias" if has_bias else "",
            q_norm=attn + "q_norm.weight" if has_norm else "",
            k_norm=attn + "k_norm.weight" if has_norm else "",
            mlp_norm=base + "post_attention_layernorm.weight",
            gate=mlp + "gate_proj.weight",
            up=mlp + "up_proj.weight",
            down=mlp + "down_proj.weight",
        )

    def _layer_shapes(self) -> tuple[tuple[int, ...], ...]:
        c = self._config
        q_rows, kv_rows = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        d, wide = c.hidden_size, c.n_columns
        # In the order of LayerTensors.
        return (
            (d,),
            (q_rows, d),
            (kv_rows, d),
            (kv_rows, d),
            (d, q_rows),
            (q_rows,),
            (kv_rows,),
            (kv_rows,),
            (c.head_dim,),
            (c.head_dim,),
            (d,),
            (wide, d),
            (wide, d),
            (d, wide),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every tensor that must be present."""
        c = self._config
        table: dict[str, tuple[int, ...]] = {
            self.embedding: (c.vocab_size, c.hidden_size),
            self.lm_head: (c.vocab_size, c.hidden_size),
            self.final_norm: (c.hidden_size,),
        }
        layer_shapes = self._layer_shapes()
        for layer in range(c.n_layers):
            named = zip(self.layer(layer), layer_shapes, strict=True)
            table.update((name, shape) for name, shape in named if name)
        return table

    def is_ignorable(self, name: str) -> bool:
        """Tell whether an extra tensor changes nothing: caches, or the copy of a tied head."""
        return name.endswith(("rotary_emb.inv_freq", "attn.masked_bias")) or (
            name == "lm_head.weight" and self._config.tied_embeddings
        )
